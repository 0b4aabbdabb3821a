"""End tokens of a folder: those of `config.json` and those that only `generation_config.json` has.

Chat models keep the end of a turn in the second file alone. A model that lost it would run on past its end.
"""

from dataclasses import replace
from pathlib import Path

from owl2.checkpoint.errors import CheckpointError
from owl2.files import read_json
from owl2.model.config import ConfigError, DecoderConfig

FILE = "generation_config.json"


def with_generation_ends(decoder: DecoderConfig, folder: Path) -> DecoderConfig:
    """Add the end tokens of the folder's `generation_config.json` to those of its `config.json`.

    Raises:
        CheckpointError: the file is damaged, or has something else than token ids.
    """
    file = folder / FILE
    ends = read_json(file, CheckpointError).get("eos_token_id") if file.is_file() else None
    known = sorted(decoder.end_tokens)
    more = [
        end for end in (ends if isinstance(ends, list) else [ends]) if end is not None and end not in known
    ]
    if not more:
        return decoder
    try:
        return replace(decoder, eos_token_id=(*known, *dict.fromkeys(more)))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"{file}: eos_token_id {ends!r:.60} is neither a token id nor a list of them"
        ) from error

"""Generation settings, as one frozen record: `generation_config.json` fills it, keywords override it.

Names and meanings of the fields are those of `transformers`. The default is greedy decoding, as in the
released evaluation. Settings in the file that are not supported here are named when a checkpoint is loaded
(owl2/checkpoint/settings.py).
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from owl2.errors import Owl2Error
from owl2.fields import check_fields, number
from owl2.files import read_json
from owl2.model import Owl2Model

FILE_NAME = "generation_config.json"


class GenerationError(Owl2Error, ValueError):
    """Impossible settings, or a prompt that leaves no room for the answer."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Length, choice and end of generated text."""

    max_new_tokens: int = number(512, ge=1)
    """Most tokens to generate. Chat that is given no number takes less where the context has less left."""
    min_new_tokens: int = number(0, ge=0)
    """End tokens have probability 0 before this many tokens."""
    do_sample: bool = False
    """Sample from the distribution; else take the most probable token, ignoring the next five fields."""
    temperature: float = number(1.0, ge=0, hint="0 is greedy")
    """Divides the logits; 0 is greedy."""
    top_k: int = number(0, ge=0, hint="0 samples among all tokens")
    """Sample among the k most probable tokens; 0: among all."""
    top_p: float = number(1.0, gt=0, le=1)
    """Sample among the fewest most probable tokens that together have this probability."""
    min_p: float = number(0.0, ge=0, lt=1, hint="0 samples among all tokens")
    """Sample among tokens with at least this share of the most probable token's probability."""
    seed: int | None = number(None, ge=0)
    """Row i of a batch samples with seed + i, whatever the other rows are; None: differently each time."""
    repetition_penalty: float = number(1.0, gt=0, hint="1 is no penalty")
    """Above 1, tokens that the prompt or the answer has already become less probable (repetition.py)."""
    stop: str | tuple[str, ...] = field(default=(), metadata={"blank": True})
    """The answer ends before the first of these texts. Of calls that give text, not of `generate`."""
    num_beams: int = number(1, ge=1, le=1000, hint="1 is no beam search")
    """Beams of a beam search; 1 is greedy decoding or sampling. Beams do not sample."""
    length_penalty: float = number(1.0, ge=-20, le=20)
    """A beam's score is its log-probability / length ** length_penalty: above 0 favours long answers."""
    early_stopping: bool | Literal["never"] = False
    """When a row with `num_beams` ended beams stops. True: at once. False: when no running beam would beat
    these if it ended now. "never": when none can beat them by ending later either."""
    eos_token_id: int | tuple[int, ...] | None = number(None, ge=0)
    """Each of these ends a row. None: the model's."""

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        if isinstance(self.stop, str | list):
            object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        check_fields(self, GenerationError)
        if self.eos_token_id == ():
            raise GenerationError(
                "eos_token_id is an empty list: answers could never end; null is the model's"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise GenerationError(
                f"min_new_tokens = {self.min_new_tokens} must be from 0 to max_new_tokens, here "
                f"{self.max_new_tokens}"
            )
        if self.num_beams > 1 and not self.is_greedy:
            raise GenerationError(
                f"num_beams = {self.num_beams} with do_sample: beam search does not sample; set do_sample to "
                f"false or num_beams to 1"
            )

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0

    def replace(self, **changes: Any) -> "GenerationConfig":
        """Return a copy with the given settings changed.

        Raises:
            TypeError: no such setting; the message has the nearest one.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
                raise TypeError(
                    f"unknown generation setting {name!r}; nearest is {near!r} of {', '.join(known)}"
                )
        return dataclasses.replace(self, **changes)

    @classmethod
    def read(cls, folder: Path) -> "GenerationConfig":
        """Read `folder/generation_config.json`; the defaults if there is none.

        Raises:
            GenerationError: the file is damaged or has an impossible value; the message names it.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return cls()
        raw = read_json(path, GenerationError)
        known = [f.name for f in dataclasses.fields(cls) if raw.get(f.name) is not None]
        try:
            return cls(**{name: raw[name] for name in known})
        except GenerationError as error:
            raise GenerationError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as `generation_config.json` holds it."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }


def end_tokens(model: Owl2Model, config: GenerationConfig) -> frozenset[int]:
    """Return the tokens that end an answer.

    Raises:
        GenerationError: one is outside the vocabulary.
    """
    decoder, ends = model.config.decoder, config.eos_token_id
    found = decoder.end_tokens if ends is None else frozenset(ends if isinstance(ends, tuple) else (ends,))
    if outside := sorted(token for token in found if token >= decoder.vocab_size):
        raise GenerationError(
            f"eos_token_id {outside} is outside the vocabulary of {decoder.vocab_size} tokens"
        )
    return found

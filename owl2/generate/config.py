"""How text is generated, as one frozen record: `generation_config.json` fills it, keywords override it.

Field names and meanings are those of `transformers`. What the file does not say is greedy decoding, as in the
released evaluation. Loading a checkpoint names settings of the file that this code does not have
(owl2/checkpoint/settings.py).
"""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error
from owl2.files import read_json

FILE_NAME = "generation_config.json"


class GenerationError(Owl2Error, ValueError):
    """Settings that cannot be, or a prompt that leaves no room for them."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Length, choice and end of generated text."""

    max_new_tokens: int = 512
    """Most tokens to generate. Chat that is not told a number takes less where the context has less left."""
    min_new_tokens: int = 0
    """The end token has probability 0 before this many tokens."""
    do_sample: bool = False
    """Draw from the distribution; otherwise take the most probable token, and the four fields below rest."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0 among all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens that hold this much probability together."""
    seed: int | None = None
    """Row i of a batch draws with seed + i, whatever the other rows do; None draws anew each time."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Ends a row. None: the model's."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens = {self.max_new_tokens}: at least 1 is needed")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise GenerationError(
                f"min_new_tokens = {self.min_new_tokens} must be from 0 to max_new_tokens, here "
                f"{self.max_new_tokens}"
            )
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature = {self.temperature} must be 0 (greedy) or more")
        if self.top_k < 0:
            raise GenerationError(f"top_k = {self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p = {self.top_p} must be above 0 and at most 1")
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))

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
        except (GenerationError, TypeError) as error:
            raise GenerationError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as `generation_config.json` holds it."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }

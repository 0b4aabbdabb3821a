"""Everything that defines a training run; `owl2 train CONFIG.yaml [--key.path value ...]`.

A stage of the paper is one file in `configs/`. Fields are documented here and nowhere else; `owl2 train
--help` prints them. An unknown key is an error.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from owl2.data.augment import AUGMENTATIONS
from owl2.train.rules import Rule


class TrainConfigError(ValueError):
    """Settings that contradict each other; the message has the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus of the mixture."""

    name: str
    path: Path
    """A `.jsonl` file in the LLaVA format, or a folder of WebDataset `.tar` shards."""
    weight: float = 1.0
    """Share of the draws, relative to the other sources; 0 switches the source off."""
    image_root: Path | None = None
    """Where a `.jsonl` file's image paths begin; default: its folder."""
    augment: str = "none"
    """`none`, `crop`, `flip` or `crop_flip` (stage 1 of the paper)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture."""

    sources: list[SourceConfig]
    seed: int = 0
    template: str = "mplug_owl2"
    """`mplug_owl2` (what inference uses) or `vicuna_v1` (what the released scripts train with)."""
    max_tokens: int = 2048
    """Longest sample, visual tokens included; longer ones are cut."""
    num_workers: int = 0
    max_bad_fraction: float = 0.01
    """Share of unusable samples above which the run stops, once there are more than ten."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a cosine schedule. Defaults: Table 15, stage 1."""

    lr: float = 1e-4
    min_lr: float = 1e-6
    warmup_steps: int = 1000
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it; `.inf` never does."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A stage."""

    run: Path
    """Folder of the run: config, metrics, state, and the finished `checkpoint`."""
    model: Path
    """Checkpoint folder to start from."""
    data: DataConfig
    rules: list[Rule]
    """Ordered; the first that matches a parameter's name decides."""
    steps: int
    optim: OptimConfig = field(default_factory=OptimConfig)
    global_batch_size: int = 256
    """Samples a step; must equal micro_batch_size x accumulation x ranks."""
    micro_batch_size: int = 1
    accumulation: int = 1
    image_size: int | None = None
    """Side in pixels; if it differs from the checkpoint's, positions are interpolated once at the start."""
    copy_text_to_vision: bool = False
    """Start the visual ways of MAM from the text ways, as stage 1 does after a language model is loaded."""
    objective: Literal["next_token", "bag_of_words"] = "next_token"
    """The paper's loss, or the abstractor's warm start for low budgets (train/objectives.py)."""
    save_every: int = 500
    keep_last: int = 2
    log_every: int = 10
    device: str = "cpu"
    dtype: str = "float32"

    def check(self, ranks: int = 1) -> None:
        """Raise TrainConfigError where a value is out of range or the batch arithmetic does not add up."""
        counts = ("steps", "micro_batch_size", "accumulation", "save_every", "keep_last", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise TrainConfigError(f"{name} {getattr(self, name)} must be at least 1")
        product = self.micro_batch_size * self.accumulation * ranks
        if product != self.global_batch_size:
            raise TrainConfigError(
                f"micro_batch_size {self.micro_batch_size} x accumulation {self.accumulation} x {ranks} "
                f"rank(s) = {product}, but global_batch_size is {self.global_batch_size}"
            )
        if not 0 <= self.optim.warmup_steps < self.steps:
            raise TrainConfigError(
                f"optim.warmup_steps {self.optim.warmup_steps} must be below steps {self.steps}"
            )
        if not self.optim.max_grad_norm > 0:
            raise TrainConfigError(
                f"optim.max_grad_norm {self.optim.max_grad_norm} would leave no gradient; .inf does not clip"
            )
        self._check_data()

    def _check_data(self) -> None:
        names = [source.name for source in self.data.sources]
        if len(set(names)) != len(names) or not names:
            raise TrainConfigError(f"data.sources must be there and have different names: {names}")
        if self.data.seed < 0:
            raise TrainConfigError(f"data.seed {self.data.seed} must not be negative")
        for source in self.data.sources:
            if source.augment not in AUGMENTATIONS:
                raise TrainConfigError(
                    f"augment {source.augment!r} of {source.name} is not one of {', '.join(AUGMENTATIONS)}"
                )


def config_to_dict(value: Any) -> Any:
    """The configuration as plain data, as it is written to `config.yaml` and read back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: config_to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [config_to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value

"""Everything that defines a training run; `owl2 train CONFIG.yaml [--key.path value ...]`.

A stage of the paper is one file in `configs/`. Fields are documented here and nowhere else; `owl2 train
--help` prints them. An unknown key is an error.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from owl2.data.decode import AUGMENTATIONS
from owl2.data.readers.base import Shuffle
from owl2.errors import Owl2Error
from owl2.train.rules import Rule

TrackerName = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


class TrainConfigError(Owl2Error, ValueError):
    """Settings that contradict each other; the message has the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus of the mixture."""

    name: str
    path: str | Path
    """A `.jsonl` file in the LLaVA format, a folder of WebDataset `.tar` shards, or tables: a `.parquet` or
    `.arrow` file, a folder of them, or a pattern as `folder/train-*.parquet`; local, or a URL."""
    weight: float | Literal["size"] = 1.0
    """Share of the draws, relative to the other sources: a number, or `size` for as many as it has samples; 0
    switches the source off."""
    image_root: str | Path | None = None
    """Where image paths in a `.jsonl` file or a table begin; default: its folder."""
    shuffle: Shuffle | None = None
    """`samples` by lot, or `slices` of neighbours by lot, mixed within a window of 64; default: `slices` for
    shards at a URL, so that storage sees few large requests, `samples` for all else."""
    augment: str = "none"
    """`none`, `crop`, `flip` or `crop_flip` (stage 1 of the paper). `crop` alone where writing matters, which
    a flip mirrors; samples whose text says left or right are never flipped."""
    turns: Literal["together", "apart"] = "together"
    """`apart`: no question of a conversation sees another, and all see its images, which are encoded once.
    The paper has them together."""

    def __post_init__(self) -> None:
        # A path of Python's and its text in a file are the same source; a URL is no path.
        object.__setattr__(self, "path", str(self.path))
        object.__setattr__(self, "image_root", None if self.image_root is None else str(self.image_root))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture."""

    sources: list[SourceConfig]
    seed: int = 0
    template: str = "mplug_owl2"
    """`mplug_owl2` (what inference uses) or `vicuna_v1` (what the released scripts train with)."""
    max_tokens: int = 2048
    """Longest sample, visual tokens included; longer ones are cut."""
    pack_tokens: int | None = None
    """Most tokens of a micro-batch. A step's samples are then packed into as few micro-batches as hold them,
    spread evenly over the ranks, in place of `micro_batch_size` samples each. It changes neither what is
    learned nor where a run resumes. Every rank reads the text of the whole step: for conversations, whose
    lengths differ, not for captions at a URL."""
    num_frames: int = 8
    """Images that a video becomes, evenly spaced."""
    targets: Literal["answers", "all"] = "answers"
    """What is to be predicted: the answers and their end tokens, or all text, as in a language model's own
    pre-training."""
    num_workers: int = 0
    max_bad_fraction: float = 0.01
    """Share of unusable samples above which the run stops, once there are more than ten."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is measured while a run goes on and never trained on."""

    sources: list[SourceConfig]
    """Held-out corpora; their weight and augmentation play no part."""
    every: int = 500
    """Steps from one time to the next; also after the last step."""
    max_samples: int = 512
    """Of each source, the first ones."""


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
class ParallelConfig:
    """How the processes that `torchrun` started share the work; the result does not depend on it.

    Of W processes, `tensor` neighbours compute one sample together, and the W / tensor that are left read
    different samples. `replicate` copies of the model are kept; each is sharded over the rest (FSDP2).
    """

    tensor: int = 1
    """Processes that split every layer among them; they should be of one node. Must divide the heads."""
    replicate: int = 1
    """Copies of the model, for networks that are slow between nodes (hybrid sharding); 1 shards it fully."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """What the backward pass computes again: nothing, whole layers, or all but matrix products."""
    compile: str | None = None
    """Backend of `torch.compile` for each layer: `inductor`, or `aot_eager` to try it without a compiler."""
    timeout_s: int = 1800
    """Seconds after which a process that waits for another gives up and says for whom."""

    def check(self, ranks: int) -> None:
        """Raise TrainConfigError where `ranks` processes cannot be arranged like this."""
        for name in ("tensor", "replicate", "timeout_s"):
            if getattr(self, name) < 1:
                raise TrainConfigError(f"parallel.{name} {getattr(self, name)} must be at least 1")
        if ranks % (self.tensor * self.replicate):
            raise TrainConfigError(
                f"{ranks} process(es) cannot be parallel.replicate {self.replicate} copies x "
                f"parallel.tensor {self.tensor}: {self.replicate} x {self.tensor} = "
                f"{self.replicate * self.tensor} does not divide {ranks}"
            )
        if self.compile and self.activation_checkpointing == "selective":
            raise TrainConfigError(
                f"parallel.activation_checkpointing selective cannot see into layers compiled by "
                f"{self.compile}, which choose by themselves what to keep; use full or none"
            )

    def data_ranks(self, ranks: int) -> int:
        """How many of `ranks` processes read different samples."""
        return ranks // self.tensor


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside frozen matrices (Hu et al., arXiv:2106.09685), with `peft`.

    There is no dropout: losses must depend neither on interruptions nor on the number of processes.
    """

    targets: list[str] = field(default_factory=lambda: ["model.layers.*"])
    """Globs over linear layers; `*.k_proj` means both ways of MAM, `*.k_proj.multiway.1` the visual one. The
    vision encoder is reached only by a pattern that begins with `model.vision_model.`."""
    rank: int = 64
    alpha: float = 128
    """Adapters count alpha / rank times."""
    seed: int = 0
    """Of the draws the adapters start from."""
    base_dtype: Literal["float32", "nf4"] = "float32"
    """How the frozen matrices beside the adapters are kept: `nf4` has them in four bits (QLoRA,
    arXiv:2305.14314), with `bitsandbytes`."""

    def check(self) -> None:
        """Raise TrainConfigError where a value is out of range."""
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise TrainConfigError(
                f"lora.rank {self.rank} must be at least 1, lora.alpha {self.alpha} above 0, and "
                f"lora.targets {self.targets} must name layers"
            )


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of what learns; not in the paper."""

    decay: float
    """Share of the average that a step leaves as it is: 0.999 looks back about 1,000 steps."""
    checkpoint: Literal["average", "last"] = "average"
    """Which weights `RUN/checkpoint` (and `RUN/adapter`) has; states have both."""

    def check(self) -> None:
        """Raise TrainConfigError where the decay is no share."""
        if not 0 < self.decay < 1:
            raise TrainConfigError(f"ema.decay {self.decay} must be between 0 and 1, as 0.999")


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
    """Samples a step; must equal micro_batch_size x accumulation x processes / parallel.tensor, where
    data.pack_tokens does not decide what a micro-batch is."""
    micro_batch_size: int = 1
    accumulation: int = 1
    skip_nonfinite: int = 0
    """Steps, of the whole run, that may have a loss or gradient that is not finite and then change nothing;
    one more stops the run."""
    image_size: int | None = None
    """Side in pixels; if it differs from the checkpoint's, positions are interpolated once at the start."""
    copy_text_to_vision: bool = False
    """Start the visual ways of MAM from the text ways, as stage 1 does after a language model is loaded."""
    objective: Literal["next_token", "bag_of_words"] = "next_token"
    """The paper's loss, or the abstractor's warm start for low budgets (train/objectives.py)."""
    validation: ValidationConfig | None = None
    save_every: int = 500
    save_in_background: bool = True
    """Train on while a copy in memory is written; costs as much memory of the host as a rank's part of a
    state."""
    keep_last: int = 2
    keep_every: int | None = None
    """States after a multiple of so many steps are kept for good, besides the last."""
    log_every: int = 10
    trackers: list[TrackerName] = field(default_factory=list)
    """Where figures go beside `metrics.jsonl`; each needs its package (train/trackers.py)."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation and of the result; parameters, moments and sums of gradients are float32."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    ema: EmaConfig | None = None
    lora: LoraConfig | None = None
    """Train adapters; the result is merged, and the adapters alone are in `RUN/adapter`."""

    def check(self, ranks: int = 1) -> None:
        """Raise TrainConfigError where a value is out of range or `ranks` processes do not add up to it."""
        counts = ("steps", "micro_batch_size", "accumulation", "save_every", "keep_last", "log_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise TrainConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.save_every):
            raise TrainConfigError(
                f"keep_every {self.keep_every} must be a multiple of save_every {self.save_every}"
            )
        unknown = [name for name in self.trackers if name not in TRACKERS]
        if unknown or len(set(self.trackers)) != len(self.trackers):
            raise TrainConfigError(
                f"trackers {self.trackers} must be different ones of {', '.join(TRACKERS)}"
            )
        if self.skip_nonfinite < 0:
            raise TrainConfigError(f"skip_nonfinite {self.skip_nonfinite} must not be negative")
        self.parallel.check(ranks)
        data_ranks = self.parallel.data_ranks(ranks)
        product = self.micro_batch_size * self.accumulation * data_ranks
        if self.data.pack_tokens is None and product != self.global_batch_size:
            tensor = f" ({ranks} / parallel.tensor {self.parallel.tensor})" if data_ranks != ranks else ""
            raise TrainConfigError(
                f"micro_batch_size {self.micro_batch_size} x accumulation {self.accumulation} x {data_ranks} "
                f"rank(s){tensor} = {product}, but global_batch_size is {self.global_batch_size}"
                f"{self._nearest_batch(data_ranks)}"
            )
        if not 0 <= self.optim.warmup_steps < self.steps:
            raise TrainConfigError(
                f"optim.warmup_steps {self.optim.warmup_steps} must be below steps {self.steps}"
            )
        if not self.optim.max_grad_norm > 0:
            raise TrainConfigError(
                f"optim.max_grad_norm {self.optim.max_grad_norm} would leave no gradient; .inf does not clip"
            )
        if self.ema is not None:
            self.ema.check()
        if self.lora is not None:
            self.lora.check()
            self._check_lora()
        self._check_data()

    def _nearest_batch(self, data_ranks: int) -> str:
        """What would add up on so many ranks: this micro-batch, else the largest below it."""
        share, rest = divmod(self.global_batch_size, data_ranks)
        if rest or not share:
            return ""
        size = max(n for n in range(1, min(share, self.micro_batch_size) + 1) if share % n == 0)
        return f"; take --micro_batch_size {size} --accumulation {share // size}"

    def _check_lora(self) -> None:
        if self.parallel.tensor > 1:
            raise TrainConfigError(
                f"parallel.tensor {self.parallel.tensor} does not split layers with adapters; with "
                f"lora use parallel.tensor 1, which shards the model over all processes"
            )
        if self.image_size is not None or self.copy_text_to_vision:
            raise TrainConfigError(
                "image_size and copy_text_to_vision change the checkpoint that adapters belong to, so they "
                "cannot stand beside lora; change it in a stage of its own"
            )

    def _check_data(self) -> None:
        held_out = [] if self.validation is None else self.validation.sources
        for key, sources in (("data", self.data.sources), ("validation", held_out)):
            names = [source.name for source in sources]
            if len(set(names)) != len(names) or (not names and sources is not held_out):
                raise TrainConfigError(f"{key}.sources must be there and have different names: {names}")
            if any(":" in name for name in names):
                raise TrainConfigError(f"a name of {key}.sources has a colon: {names}")
        if self.validation is not None and min(self.validation.every, self.validation.max_samples) < 1:
            raise TrainConfigError(
                f"validation.every {self.validation.every} and max_samples {self.validation.max_samples} "
                f"must be at least 1"
            )
        if self.data.num_frames < 1:
            raise TrainConfigError(f"data.num_frames {self.data.num_frames} must be at least 1")
        if self.data.pack_tokens is not None:
            self._check_packing(self.data.pack_tokens)
        if self.data.seed < 0:
            raise TrainConfigError(f"data.seed {self.data.seed} must not be negative")
        for source in self.data.sources:
            if source.augment not in AUGMENTATIONS:
                raise TrainConfigError(
                    f"augment {source.augment!r} of {source.name} is not one of {', '.join(AUGMENTATIONS)}"
                )

    def _check_packing(self, pack_tokens: int) -> None:
        if pack_tokens < self.data.max_tokens:
            raise TrainConfigError(
                f"data.pack_tokens {pack_tokens} must be at least data.max_tokens {self.data.max_tokens}"
            )
        if self.micro_batch_size != 1 or self.accumulation != 1:
            raise TrainConfigError(
                f"with data.pack_tokens the samples of a step decide how many micro-batches there are: leave "
                f"micro_batch_size {self.micro_batch_size} and accumulation {self.accumulation} at 1"
            )


def config_to_dict(value: Any) -> Any:
    """The configuration as plain data, as it is written to `config.yaml` and read back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: config_to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [config_to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value

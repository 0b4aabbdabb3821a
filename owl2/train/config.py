"""The configuration of a training run; `owl2 train CONFIG.yaml [--key.path value ...]`.

A stage of the paper is one file in `owl2/configs/`. Each field is documented and has its bounds here and
nowhere else. An unknown key is an error. Nothing here imports torch when it is loaded, so that the command
line can parse and explain a configuration at once.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from owl2.errors import Faults, Owl2Error
from owl2.fields import check_fields, find_faults, number

TrackerName = Literal["tensorboard", "wandb", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


class TrainConfigError(Owl2Error, ValueError):
    """A setting that is out of range, or settings that contradict each other; the message has the numbers."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus of the mixture."""

    name: str
    """Its name in messages, metrics and reports."""
    path: str | Path
    """A `.jsonl` or `.json` file, WebDataset `.tar` shards, or `.parquet` or `.arrow` tables: a file, a
    folder of shards or tables, or a pattern as `train-*.parquet` or `{00000..00012}.tar`; local, or a URL."""
    weight: float | Literal["size"] = number(1.0, ge=0)
    """Share of the samples, relative to the other sources: a number, or `size` for the number of its samples;
    0 switches the source off."""
    image_root: str | Path | None = None
    """Folder that image paths in rows are relative to; default: the file's own."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns where they are not the known ones: `{conversations: dialog, image: img_path}`."""
    shuffle: Literal["samples", "slices"] | None = None
    """`samples` in random order, or `slices` of neighbours in random order, mixed within a window of 64;
    default: `slices` for shards at a URL, so that storage gets few large requests, else `samples`."""
    augment: Literal["none", "crop", "flip", "crop_flip"] = "none"
    """`none`, `crop`, `flip` or `crop_flip` (stage 1 of the paper). Only `crop` where images have writing,
    which a flip mirrors; samples whose text says left or right are never flipped."""
    turns: Literal["together", "apart"] = "together"
    """`apart`: no question of a conversation sees another, and all see its images, which are encoded once.
    The paper has them together."""

    def __post_init__(self) -> None:
        # A `Path` and its text in a file are the same source. A URL stays as it is.
        for name in ("path", "image_root"):
            if isinstance(value := getattr(self, name), str | Path):
                object.__setattr__(self, name, os.path.expanduser(str(value)))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The mixture."""

    sources: list[SourceConfig]
    """The corpora."""
    seed: int = number(0, ge=0)
    """Of the order of samples, of the mixture and of augmentation."""
    template: str = "mplug_owl2"
    """`mplug_owl2` (what inference uses) or `vicuna_v1` (what the released scripts train with)."""
    max_tokens: int = number(2048, ge=2)
    """Longest sample, visual tokens included; longer ones are cut."""
    pack_tokens: int | None = None
    """Most tokens of a micro-batch. A step's samples are then packed into as few micro-batches as hold them,
    spread evenly over the ranks, instead of `micro_batch_size` samples each. This changes neither what is
    learned nor where a run resumes. Every rank reads the text of the whole step: for conversations, whose
    lengths differ, not for captions at a URL."""
    num_frames: int = number(8, ge=1)
    """Images per video, evenly spaced."""
    validation_share: float | None = number(None, gt=0, le=0.5)
    """Share of every source that is never trained on and measured as validation. Which samples these are
    depends on the seed, the source's name and the sample's number alone."""
    targets: Literal["answers", "all", "last"] = "answers"
    """What the loss is computed on: the answers and their end tokens; all text, as in the pre-training of a
    language model; or the last answer of each conversation."""
    num_workers: int = number(0, ge=0, le=1024)
    """Processes per rank that read and prepare samples; 0 does so between the steps."""
    max_bad_fraction: float = number(0.01, ge=0, le=1)
    """Share of unusable samples above which the run stops, once there are more than ten; and of a corpus in
    files that are damaged and left out, above which it does not start."""
    accept_edits: bool = False
    """Resume although corpora were edited, reordered or extended since the last state. Some samples may then
    be seen again and others never."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Held-out samples whose loss is measured during the run."""

    sources: list[SourceConfig] = field(default_factory=list)
    """Held-out corpora, in addition to what data.validation_share holds out; their weight and augmentation
    have no effect."""
    every: int | float = number(500, ge=0)
    """Steps between two measurements, or below 1 a share of all steps; the last step is always followed by
    one."""
    max_samples: int = number(512, ge=1)
    """The first samples of each source, up to this number."""
    samples: int | None = number(None, ge=1)
    """Held-out samples that are answered at each measurement and once before the training, as `owl2 chat`
    answers them."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What happens to the parameters whose name matches."""

    match: str
    """Glob over parameter names, as in `model.vision_model.*`."""
    frozen: bool = False
    """Not trained: no gradient, no moments, no bit changes."""
    lr: float = number(1.0, gt=0, hint="frozen: true keeps parameters as they are")
    """Multiplier of the learning rate."""
    layer_decay: float = number(1.0, gt=0, le=1)
    """Factor on the learning rate for each ViT layer below the last; the paper uses 0.9. Vision encoder
    only."""
    weight_decay: float | None = number(None, ge=0)
    """Overrides that of the optimizer. Vectors (norms, biases) never decay."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a cosine schedule. Defaults: Table 15, stage 1."""

    lr: float = number(1e-4, gt=0)
    """Highest learning rate, which rules multiply."""
    min_lr: float = number(1e-6, ge=0)
    """Learning rate of the last step."""
    warmup_steps: int | float = number(1000, ge=0)
    """Steps until the learning rate is reached, or below 1 a share of all steps."""
    betas: tuple[float, float] = number((0.9, 0.98), ge=0, lt=1)
    """Decay of the averages of the gradient and of its square."""
    eps: float = number(1e-6, gt=0)
    """Added to the root of the second average."""
    weight_decay: float = number(0.05, ge=0)
    """Share of a matrix that a step at learning rate 1 takes away; vectors never decay."""
    max_grad_norm: float = number(1.0, gt=0, inf=True, hint=".inf does not clip")
    """Gradients of a larger norm are scaled down to it; `.inf` never does."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes that `torchrun` started share the work; the result does not depend on it.

    Of W processes, `tensor` neighbours compute one sample together, and the W / tensor groups read different
    samples. There are `replicate` copies of the model, each sharded over the other processes (FSDP2).
    """

    tensor: int = number(1, ge=1)
    """Processes that split every layer among them, best on one node. Must divide the heads."""
    replicate: int = number(1, ge=1)
    """Copies of the model, for slow networks between nodes (hybrid sharding); 1 shards it over all."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """What the backward pass computes again: nothing, whole layers, or everything but matrix products."""
    compile: str | None = None
    """Backend of `torch.compile` for each layer: `inductor`, or `aot_eager` to try it without a compiler."""
    timeout_s: int = number(1800, ge=1, le=10_000_000)
    """Seconds after which a process that waits for another gives up and says which one is missing."""

    def check(self, ranks: int) -> None:
        """Raise TrainConfigError if `ranks` processes cannot be arranged like this."""
        check_fields(self, TrainConfigError, "parallel")
        if ranks % (self.tensor * self.replicate):
            raise TrainConfigError(
                f"{ranks} process(es) cannot be parallel.replicate {self.replicate} copies x "
                f"parallel.tensor {self.tensor}: {self.replicate} x {self.tensor} = "
                f"{self.replicate * self.tensor} does not divide {ranks}"
            )
        if self.compile and self.activation_checkpointing == "selective":
            raise TrainConfigError(
                f"parallel.activation_checkpointing selective has no access to layers compiled by "
                f"{self.compile}, which choose by themselves what to keep; use full or none"
            )

    def data_ranks(self, ranks: int) -> int:
        """How many of `ranks` processes read different samples."""
        return ranks // self.tensor


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on frozen matrices (Hu et al., arXiv:2106.09685), with `peft`.

    There is no dropout: losses must depend neither on interruptions nor on the number of processes.
    """

    targets: list[str] = field(default_factory=lambda: ["model.layers.*"])
    """Globs over linear layers; `*.k_proj` means both branches of MAM, `*.k_proj.multiway.1` the visual one.
    Only a pattern that begins with `model.vision_model.` reaches the vision encoder."""
    rank: int = number(64, ge=1)
    """Width of the adapters."""
    alpha: float = number(128, gt=0)
    """Adapters are scaled by alpha / rank."""
    seed: int = number(0, ge=0)
    """Of the adapters' initialisation."""
    base_dtype: Literal["float32", "nf4"] = "float32"
    """Type of the frozen matrices that have adapters: `nf4` keeps them in four bits (QLoRA,
    arXiv:2305.14314), with `bitsandbytes`."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the trainable parameters; not in the paper."""

    decay: float = number(gt=0, lt=1, hint="0.999 averages over about 1,000 steps")
    """Share of the average that a step keeps: 0.999 averages over about 1,000 steps."""
    checkpoint: Literal["average", "last"] = "average"
    """Which weights `RUN/checkpoint` (and `RUN/adapter`) has; states have both."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A stage."""

    run: Path
    """Folder of the run: config, metrics, state, and the finished `checkpoint`."""
    model: Path
    """Checkpoint to start from: a folder, or a Hugging Face hub id such as owner/name."""
    data: DataConfig
    """The mixture that is trained on."""
    rules: list[Rule]
    """Ordered; the first that matches a parameter's name decides."""
    steps: int = number(0, ge=0)
    """Length of the stage, unless `epochs` gives it."""
    epochs: float | None = number(None, gt=0)
    """Length of the stage in place of `steps`: as many samples are drawn as all sources together have, this
    many times."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    global_batch_size: int = number(256, ge=1)
    """Samples per step; must equal micro_batch_size x accumulation x processes / parallel.tensor, unless
    data.pack_tokens makes the micro-batches."""
    micro_batch_size: int = number(1, ge=1)
    """Samples that a process computes at once."""
    accumulation: int = number(1, ge=1)
    """Micro-batches of a process in a step."""
    skip_nonfinite: int = number(0, ge=0)
    """Steps of the whole run that may be skipped because their loss or gradient is not finite; one more stops
    the run."""
    image_size: int | None = number(None, ge=1)
    """Side in pixels; if it differs from the checkpoint's, positions are interpolated once at the start."""
    copy_text_to_vision: bool = False
    """Start the visual weights of MAM as copies of the text weights, as stage 1 does after a language model
    is loaded."""
    objective: Literal["next_token", "bag_of_words"] = "next_token"
    """The paper's loss, or the abstractor's warm start for low budgets (train/objectives.py)."""
    validation: ValidationConfig | None = None
    """Held-out samples whose loss is measured during the run."""
    save_every: int = number(500, ge=1)
    """Steps between two saved states."""
    save_in_background: bool = True
    """Train on while a copy in memory is written; costs as much host memory as a rank's part of a state."""
    keep_last: int = number(2, ge=1)
    """Newest states to keep."""
    keep_every: int | None = number(None, ge=1)
    """States after a multiple of this many steps are never deleted."""
    log_every: int = number(10, ge=1)
    """Steps between two lines on a console that is no terminal."""
    trackers: list[TrackerName] = field(default_factory=list)
    """Where metrics go in addition to `metrics.jsonl`; each needs its package (train/trackers.py)."""
    device: str = "cpu"
    """`cpu`, `cuda` (each process its own GPU), `cuda:1`, ..., or `auto` for `cuda` where there is one."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the computation and of the result; parameters, moments and sums of gradients are float32. `auto` is
    bfloat16 on a GPU that has it, else float32; a run that goes on elsewhere keeps its own."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How processes share the work."""
    ema: EmaConfig | None = None
    """A moving average of the weights."""
    lora: LoraConfig | None = None
    """Train adapters; the result is merged, and the adapters alone are in `RUN/adapter`."""

    def __post_init__(self) -> None:
        for name in ("run", "model"):
            if isinstance(value := getattr(self, name), str | Path):
                object.__setattr__(self, name, Path(os.path.expanduser(value)))
        if self.validation is None and getattr(self.data, "validation_share", None) is not None:
            object.__setattr__(self, "validation", ValidationConfig())

    def check(self, ranks: int = 1) -> None:
        """Raise TrainConfigError if values are out of range or `ranks` processes do not match the batch."""
        faults = Faults()
        self.find_faults(faults, ranks)
        faults.raise_all()

    def find_faults(self, faults: Faults, ranks: int = 1) -> None:
        """Add to `faults` what `check` would raise; values that are at fault already are not checked."""
        find_faults(self, TrainConfigError, faults)
        checks = (
            self._check_saving,
            self._check_trackers,
            lambda: self.parallel.check(ranks),
            lambda: self._check_batch(ranks),
            self._check_schedule,
            self._check_lora,
            self._check_sources,
            self._check_packing,
        )
        for check in checks:
            with faults.collect_new():
                check()
        from owl2.processor.template import find_template

        with faults.collect_new("data.template"):
            find_template(self.data.template)

    def _check_saving(self) -> None:
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise TrainConfigError(
                f"keep_every {self.keep_every} must be a multiple of save_every {self.save_every}"
            )

    def _check_trackers(self) -> None:
        if len(set(self.trackers)) != len(self.trackers):
            raise TrainConfigError(
                f"trackers {self.trackers} must be different ones of {', '.join(TRACKERS)}"
            )

    def _check_batch(self, ranks: int) -> None:
        if self.data.pack_tokens is not None:
            return
        data_ranks = self.parallel.data_ranks(ranks)
        product = self.micro_batch_size * self.accumulation * data_ranks
        if product == self.global_batch_size:
            return
        tensor = f" ({ranks} / parallel.tensor {self.parallel.tensor})" if data_ranks != ranks else ""
        share, rest = divmod(self.global_batch_size, data_ranks)
        fitting = ""
        if share and not rest:  # the same micro-batch if possible, else the largest below it
            size = max(n for n in range(1, min(share, self.micro_batch_size) + 1) if share % n == 0)
            fitting = f"; take --micro_batch_size {size} --accumulation {share // size}"
        raise TrainConfigError(
            f"micro_batch_size {self.micro_batch_size} x accumulation {self.accumulation} x {data_ranks} "
            f"rank(s){tensor} = {product}, but global_batch_size is {self.global_batch_size}{fitting}"
        )

    def _check_schedule(self) -> None:
        optim = self.optim
        if not self.steps and self.epochs is None:
            raise TrainConfigError("steps = 0 must be 1 or more, or `epochs` given in place of it")
        if self.steps and self.epochs is not None:
            raise TrainConfigError(
                f"steps {self.steps} and epochs {self.epochs:g} are both given; leave one out, on the "
                f"command line with --epochs null or --steps 0"
            )
        every = 1 if self.validation is None else self.validation.every
        if not every:
            raise TrainConfigError("validation.every = 0 must be 1 or more, or a share of the steps below 1")
        for key, value in (("optim.warmup_steps", optim.warmup_steps), ("validation.every", every)):
            if value > 1 and value != int(value):
                raise TrainConfigError(
                    f"{key} {value} must be a whole number of steps, or a share of them below 1"
                )
        if self.steps:
            self.check_warmup()
        if optim.min_lr > optim.lr:
            raise TrainConfigError(
                f"optim.min_lr {optim.min_lr} must not be above optim.lr {optim.lr}: the rate falls to it"
            )

    def check_warmup(self) -> None:
        """Raise TrainConfigError if the warm-up is not shorter than the stage."""
        if self.optim.warmup_steps >= self.steps:
            raise TrainConfigError(
                f"optim.warmup_steps {self.optim.warmup_steps} must be below steps {self.steps}"
            )

    def as_given(self) -> "TrainConfig":
        """The configuration as it was before `epochs` was turned into `steps`."""
        return self if self.epochs is None else dataclasses.replace(self, steps=0)

    def _check_lora(self) -> None:
        if self.lora is None:
            return
        if not self.lora.targets:
            raise TrainConfigError('lora.targets is empty; the default is ["model.layers.*"]')
        if self.parallel.tensor > 1:
            raise TrainConfigError(
                f"parallel.tensor {self.parallel.tensor} does not split layers with adapters; with "
                f"lora use parallel.tensor 1, which shards the model over all processes"
            )
        if self.image_size is not None or self.copy_text_to_vision:
            raise TrainConfigError(
                "image_size and copy_text_to_vision change the checkpoint that adapters belong to, so they "
                "cannot be combined with lora; change it in a stage of its own"
            )

    def _check_sources(self) -> None:
        share = self.data.validation_share
        held_out = [] if self.validation is None else [("validation", self.validation.sources)]
        for key, sources in [("data", self.data.sources), *held_out]:
            names = [source.name for source in sources]
            if key == "validation" and share is not None:  # what is held out keeps its source's name
                names += [source.name for source in self.data.sources]
            if not names or len(set(names)) != len(names):
                raise TrainConfigError(f"{key}.sources must be there and have different names: {names}")
            if any(":" in name for name in names):
                raise TrainConfigError(f"a name of {key}.sources has a colon: {names}")
        if all(source.weight == 0 for source in self.data.sources):
            raise TrainConfigError("data.sources: every weight is 0; give one of them a weight above 0")
        apart = [source.name for source in self.data.sources if source.turns == "apart"]
        if self.data.targets == "last" and apart:
            raise TrainConfigError(
                f"data.targets last has no effect on {', '.join(apart)}, where turns: apart makes every "
                f"answer the last of its own conversation; leave one of the two out"
            )
        if self.validation is not None and self.validation.samples and self.parallel.tensor > 1:
            raise TrainConfigError(
                f"validation.samples cannot be answered by a model that is split by parallel.tensor "
                f"{self.parallel.tensor}; use parallel.tensor 1, or ask a finished checkpoint"
            )

    def _check_packing(self) -> None:
        pack_tokens = self.data.pack_tokens
        if pack_tokens is None:
            return
        if pack_tokens < self.data.max_tokens:
            raise TrainConfigError(
                f"data.pack_tokens {pack_tokens} must be at least data.max_tokens {self.data.max_tokens}"
            )
        if self.micro_batch_size != 1 or self.accumulation != 1:
            raise TrainConfigError(
                f"with data.pack_tokens the samples of a step decide how many micro-batches there are: leave "
                f"micro_batch_size {self.micro_batch_size} and accumulation {self.accumulation} at 1"
            )


def steps_of(value: float, steps: int) -> int:
    """A number of steps that is given as such or, below 1, as a share of all `steps`."""
    return round(value * steps) if value < 1 else int(value)


def config_to_dict(value: Any) -> Any:
    """The configuration as plain data, as it is written to `config.yaml` and read back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: config_to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [config_to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value

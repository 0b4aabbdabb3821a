"""Plan of a stage: what it needs on a number of GPUs, before one of them is rented.

Memory and communication are counted on the real model, sharded as in a run (tracer.py), with every sample or
pack as long as the configuration allows: what fits here fits. Operations are those of flops.py, for what
samples hold on average (inputs.py). Time is these operations at a utilisation that the reader gives; no other
figure here is assumed rather than counted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from owl2.checkpoint.folder import read_config
from owl2.data.sample import DataError
from owl2.model import Owl2Config, Work, build, preset
from owl2.model.config import PRESETS
from owl2.train.adapters.qlora import coded_layers
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.flops import PEAK_TFLOPS, StepCost
from owl2.train.parallel import most_tensor_ranks
from owl2.train.plan.inputs import Averages, average_work, longest_micro_batch, most_tokens, num_micro_batches
from owl2.train.plan.tracer import (
    Trace,
    fake_ranks,
    full_batch,
    shard_without_storage,
    shorten,
    trace_micro_batch,
    without_storage,
)
from owl2.train.prepare import open_mixture, steps_from_epochs

MIB = 2**20
USABLE = 0.92
"""Share of a GPU's memory; CUDA context, buffers of collectives and fragmentation take the rest."""
FALLBACK = "owl2_7b"
"""The model that is planned for if the configuration's checkpoint does not exist yet."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    memory: int
    """Bytes in total."""
    peak: float
    """Dense bfloat16 operations per second."""

    @property
    def usable(self) -> int:
        return int(USABLE * self.memory)


GPUS = {
    name: Gpu(name, mebibytes * MIB, PEAK_TFLOPS[name.upper().partition("-")[0]] * 1e12)
    for name, mebibytes in {
        "b200": 183359,
        "h200": 143771,
        "h100": 81559,
        "a100": 81920,
        "a100-40gb": 40960,
        "l40s": 46068,
        "4090": 24564,
    }.items()
}
"""What `nvidia-smi` reports as total memory."""


class DoesNotFit(TrainConfigError):
    """The stage needs more memory than a GPU has; the message says which settings need less."""


@dataclass(frozen=True)
class Plan:
    """What a stage needs on its GPUs."""

    config: TrainConfig
    """As it was planned: micro-batches and accumulation may differ from the given ones."""
    gpus: int
    gpu: Gpu
    model: Owl2Config
    num_parameters: int
    num_trainable: int
    averages: Averages
    micro_batches: int
    """Per GPU and step."""
    trace: Trace
    work: Work
    flops: float
    """Operations of a step, over all GPUs."""

    @property
    def fits(self) -> bool:
        return self.trace.peak <= self.gpu.usable

    @property
    def received(self) -> float:
        """Bytes that a GPU receives in a step."""
        return self.trace.received(self.micro_batches)

    def step_seconds(self, mfu: float) -> float:
        """Duration of a step at this utilisation."""
        return self.flops / (self.gpus * self.gpu.peak * mfu)

    def days(self, mfu: float) -> float:
        """Duration of the stage."""
        return self.config.steps * self.step_seconds(mfu) / 86400

    def figures(self, mfu: float) -> dict[str, Any]:
        """Everything as plain numbers: bytes of a GPU, operations of a step, seconds, days; for JSON."""
        return {
            "train_with": settings(self),
            "parameters": self.num_parameters,
            "trainable": self.num_trainable,
            "memory": {**asdict(self.trace), "usable": self.gpu.usable},
            "received_per_step": self.received,
            "micro_batches": self.micro_batches,
            "flops_per_step": self.flops,
            "seconds_per_step": self.step_seconds(mfu),
            "steps": self.config.steps,
            "days": self.days(mfu),
        }


def with_steps(config: TrainConfig) -> TrainConfig:
    """Return the stage with the steps that its epochs are; the corpora are opened for it.

    Raises:
        TrainConfigError: they cannot be opened.
    """
    if config.epochs is None:
        return config
    try:
        _, mixture = open_mixture(config.data.sources, config.data.seed, config.data.validation_share)
    except DataError as error:
        raise TrainConfigError(
            f"{error}; epochs need the data, or plan with --epochs null --steps N"
        ) from None
    return replace(steps_from_epochs(config, mixture), epochs=None)


def find_model(config: TrainConfig) -> tuple[Owl2Config, str]:
    """Return the configuration of the stage's model at the stage's resolution, and where it was found.

    Raises:
        CheckpointError, ConfigError: the folder exists, but is not a checkpoint.
    """
    name = str(config.model)
    if config.model.exists():
        model, origin = read_config(config.model), name
    elif name in PRESETS:
        model, origin = preset(name), f"preset {name}"
    else:
        model = preset(FALLBACK)
        origin = f"preset {FALLBACK}, as {name} does not exist yet (--model takes a folder or a preset)"
    if config.image_size is not None:
        vision = replace(model.vision, image_size=config.image_size)
        model = model.replace(vision=vision)
    return model, origin


def plan_stage(
    config: TrainConfig, model: Owl2Config, gpus: int, gpu: Gpu, averages: Averages | None = None
) -> Plan:
    """Plan a stage as configured, or with the largest micro-batches that fit if the batch does not add up.

    Raises:
        DoesNotFit: the message has the first changes found that make it fit.
        TrainConfigError, RuleError: settings that do not suit this number of GPUs or this model.
    """
    averages = averages or Averages.assumed(config)
    config = replace(config, device="cuda", dtype="bfloat16" if config.dtype == "auto" else config.dtype)
    config.parallel.check(gpus)
    plan = _largest_that_fits(batch_options(config, gpus), model, gpus, gpu, averages)
    if plan.fits:
        return plan
    asked, least = plan, plan
    for changed in _remedies(config, model, gpus):
        sized = _of_all_sizes(changed, gpus)
        if changed is config:
            sized = [smaller for smaller in sized if most_tokens(smaller) < most_tokens(asked.config)]
        if not sized:
            continue
        plan = _largest_that_fits(sized, model, gpus, gpu, averages)
        if plan.fits:
            raise DoesNotFit(f"{_shortage(asked)}. What fits: {settings(plan)} ({gib(plan.trace.peak)})")
        least = min(least, plan, key=lambda p: p.trace.peak)
    held = least.trace.parameters + least.trace.saved
    lora = "" if config.lora else ", or a stage with lora"
    raise DoesNotFit(
        f"{_shortage(asked)}. Nothing tried fits: the least was {gib(least.trace.peak)} with "
        f"{settings(least)}; {gib(held)} of it are parameters, gradients and moments, which all GPUs share; "
        f"take more or larger GPUs{lora}"
    )


def plan_exactly(config: TrainConfig, model: Owl2Config, gpus: int, gpu: Gpu, averages: Averages) -> Plan:
    """Plan exactly these micro-batches, whether they fit or not.

    Raises:
        TrainConfigError, RuleError: settings that cannot be trained with.
    """
    config.check(gpus)
    whole = without_storage(config, model)
    cost = StepCost(whole, gpus)
    counts = [(p.numel(), p.requires_grad) for p in whole.parameters()]
    counts += [(layer.num_weights, False) for layer in coded_layers(whole)]
    batch = full_batch(model, longest_micro_batch(config, model, averages))
    with fake_ranks(config, gpus) as ranks:
        times = shorten(whole)
        objective = shard_without_storage(config, whole, ranks)
        trace = trace_micro_batch(objective, config, batch, times)
    work = average_work(config, model, averages)
    return Plan(
        config=config,
        gpus=gpus,
        gpu=gpu,
        model=model,
        num_parameters=sum(count for count, _ in counts),
        num_trainable=sum(count for count, is_trainable in counts if is_trainable),
        averages=averages,
        micro_batches=num_micro_batches(config, gpus, averages),
        trace=trace,
        work=work,
        flops=cost.flops(work),
    )


# -- micro-batches ---------------------------------------------------------------------------------------


def batch_options(config: TrainConfig, gpus: int) -> list[TrainConfig]:
    """The stage as configured if its batch adds up on these GPUs, else all that do, the largest first.

    Raises:
        TrainConfigError: no micro-batches add up to the global batch.
    """
    product = config.micro_batch_size * config.accumulation * config.parallel.data_ranks(gpus)
    if config.data.pack_tokens is not None or product == config.global_batch_size:
        return [config]
    sized = _of_all_sizes(config, gpus)
    return [one for one in sized if one.micro_batch_size <= config.micro_batch_size] or sized[-1:]


def _of_all_sizes(config: TrainConfig, gpus: int) -> list[TrainConfig]:
    """The stage with micro-batches of every size that adds up, the largest first; packs are halved."""
    if config.data.pack_tokens is None:
        share = config.global_batch_size // config.parallel.data_ranks(gpus)
        sizes = _divisors(config, gpus)
        return [replace(config, micro_batch_size=size, accumulation=share // size) for size in sizes]
    capacity, packs = config.data.pack_tokens, []
    while capacity > config.data.max_tokens:
        packs.append(capacity)
        capacity //= 2
    data = [replace(config.data, pack_tokens=size) for size in (*packs, config.data.max_tokens)]
    return [replace(config, data=packed) for packed in data]


def _divisors(config: TrainConfig, gpus: int) -> list[int]:
    """Sizes of micro-batches that add up to the global batch, the largest first."""
    ranks, batch = config.parallel.data_ranks(gpus), config.global_batch_size
    if batch % ranks:
        fewer = max(n for n in range(1, ranks) if batch % n == 0)
        raise TrainConfigError(
            f"global_batch_size {batch} cannot be shared by {ranks} ranks that read different samples "
            f"({gpus} GPUs / parallel.tensor {config.parallel.tensor}); take "
            f"--gpus {fewer * config.parallel.tensor} or "
            f"--global_batch_size {math.ceil(batch / ranks) * ranks}"
        )
    share = batch // ranks
    return [size for size in range(share, 0, -1) if share % size == 0]


def _largest_that_fits(
    sized: Sequence[TrainConfig], model: Owl2Config, gpus: int, gpu: Gpu, averages: Averages
) -> Plan:
    """The plan of the first of these that fits; of the last if none does.

    A plan takes seconds, so sizes that the last plan rules out are not tried: what a forward pass keeps for
    each token does not shrink with the number of tokens.
    """
    remaining = list(sized)
    while True:
        config = remaining.pop(0)
        plan = plan_exactly(config, model, gpus, gpu, averages)
        if plan.fits or not remaining:
            return plan
        fixed = plan.trace.parameters + plan.trace.optimizer + plan.trace.average
        kept = plan.trace.activations / most_tokens(config)
        possible = [one for one in remaining if fixed + kept * most_tokens(one) <= gpu.usable]
        remaining = possible or remaining[-1:]


def _remedies(config: TrainConfig, model: Owl2Config, gpus: int) -> Iterator[TrainConfig]:
    """Changes that need less memory, the least expensive first."""
    yield config
    parallel = replace(config.parallel, activation_checkpointing="full")
    if parallel != config.parallel:
        yield replace(config, parallel=parallel)
    if parallel.replicate > 1:
        parallel = replace(parallel, replicate=1)
        yield replace(config, parallel=parallel)
    if config.lora is not None:  # adapters do not support tensor parallelism
        if config.lora.base_dtype != "nf4":
            yield replace(config, parallel=parallel, lora=replace(config.lora, base_dtype="nf4"))
        return
    most = most_tensor_ranks(build(model, device="meta"))
    for tensor in (2, 4, 8):
        if tensor > parallel.tensor and not most % tensor and not gpus % tensor:
            yield replace(config, parallel=replace(parallel, tensor=tensor))


# -- text ------------------------------------------------------------------------------------------------


def _shortage(plan: Plan) -> str:
    return (
        f"{settings(plan)} needs {gib(plan.trace.peak)} a GPU, but only {gib(plan.gpu.usable)} of the "
        f"{gib(plan.gpu.memory)} of {plan.gpu.name} can be used"
    )


def settings(plan: Plan) -> str:
    """The settings that decide the memory of a plan, as options of `owl2 train`."""
    config = plan.config
    packs = {} if config.data.pack_tokens is None else {"data.pack_tokens": config.data.pack_tokens}
    chosen: dict[str, Any] = {
        **packs,
        "micro_batch_size": config.micro_batch_size,
        "accumulation": config.accumulation,
        "parallel.tensor": config.parallel.tensor,
        "parallel.activation_checkpointing": config.parallel.activation_checkpointing,
    }
    if config.parallel.replicate > 1:
        chosen["parallel.replicate"] = config.parallel.replicate
    if config.lora is not None:
        chosen["lora.base_dtype"] = config.lora.base_dtype
    return " ".join(f"--{key} {value}" for key, value in chosen.items())


def gib(size: float) -> str:
    """Format bytes in the unit of `nvidia-smi`."""
    return f"{size / 2**30:.1f} GiB"

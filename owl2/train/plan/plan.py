"""What a stage will need on so many GPUs, before one of them is there.

Memory and traffic are counted on the real model under the real arrangement (trace.py), with every sample or
pack as long as the configuration lets it be: what fits here fits. Operations are those of flops.py, for what
samples hold on average (amounts.py). Time is these operations at a utilisation that the reader gives; it is
the only figure here that nothing was counted for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from owl2.checkpoint.folder import read_config
from owl2.model import Owl2Config, preset
from owl2.model.config import PRESETS
from owl2.train.adapters.qlora import coded_layers
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.flops import PEAK_TFLOPS, StepCost, Work
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

MIB = 2**20
USABLE = 0.92
"""Of a GPU's memory; context, buffers of the collectives and fragments of the allocator take the rest."""
FALLBACK = "owl2_7b"
"""Planned for where the configuration's checkpoint is not there yet."""


@dataclass(frozen=True)
class Gpu:
    """A device."""

    name: str
    memory: int
    """Bytes in all."""
    peak: float
    """Dense bfloat16 operations a second."""

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
    """The stage needs more memory than a GPU has; the message says what needs less."""


@dataclass(frozen=True)
class Plan:
    """A stage on its GPUs."""

    config: TrainConfig
    """As it was planned: micro-batches and accumulation may differ from what was asked."""
    gpus: int
    gpu: Gpu
    model: Owl2Config
    num_parameters: int
    num_learning: int
    averages: Averages
    micro_batches: int
    """That each GPU computes in a step."""
    trace: Trace
    work: Work
    flops: float
    """Of a step, over all GPUs."""

    @property
    def fits(self) -> bool:
        return self.trace.peak <= self.gpu.usable

    @property
    def received(self) -> float:
        """Bytes that a GPU receives from others in a step."""
        return self.trace.received(self.micro_batches)

    def step_seconds(self, mfu: float) -> float:
        """Duration of a step at this share of the peak."""
        return self.flops / (self.gpus * self.gpu.peak * mfu)

    def days(self, mfu: float) -> float:
        """Duration of the stage."""
        return self.config.steps * self.step_seconds(mfu) / 86400


def find_model(config: TrainConfig) -> tuple[Owl2Config, str]:
    """Return the configured model's shape at the stage's resolution, and where it is from.

    Raises:
        CheckpointError, ConfigError: the folder is there, but is no checkpoint.
    """
    name = str(config.model)
    if config.model.exists():
        model, origin = read_config(config.model), name
    elif name in PRESETS:
        model, origin = preset(name), f"preset {name}"
    else:
        model = preset(FALLBACK)
        origin = f"preset {FALLBACK}, as {name} is not there yet (--model takes a folder or a preset)"
    if config.image_size is not None:
        vision = replace(model.vision, image_size=config.image_size)
        model = model.replace(vision=vision)
    return model, origin


def plan_stage(
    config: TrainConfig, model: Owl2Config, gpus: int, gpu: Gpu, averages: Averages | None = None
) -> Plan:
    """Plan a stage as it is configured, or with the largest micro-batches if it does not add up.

    Raises:
        DoesNotFit: with the first changes found that make it fit.
        TrainConfigError, RuleError: what cannot be arranged on so many GPUs or used with this model.
    """
    averages = averages or Averages.assumed(config)
    config = replace(config, device="cuda")
    config.parallel.check(gpus)
    plan = _largest_that_fits(arrangements(config, gpus), model, gpus, gpu, averages)
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
        f"{settings(least)}, of which parameters, gradients and moments, which more GPUs share, are "
        f"{gib(held)}; take more or larger GPUs{lora}"
    )


def plan_exactly(config: TrainConfig, model: Owl2Config, gpus: int, gpu: Gpu, averages: Averages) -> Plan:
    """Plan these micro-batches, whether they fit or not.

    Raises:
        TrainConfigError, RuleError: what cannot be trained like this.
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
        num_learning=sum(count for count, learns in counts if learns),
        averages=averages,
        micro_batches=num_micro_batches(config, gpus, averages),
        trace=trace,
        work=work,
        flops=cost.flops(work),
    )


# -- micro-batches ---------------------------------------------------------------------------------------


def arrangements(config: TrainConfig, gpus: int) -> list[TrainConfig]:
    """The stage as it is configured if it adds up on so many GPUs, else as it does, the largest first.

    Raises:
        TrainConfigError: no micro-batches add up.
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

    A plan takes seconds, so sizes are not tried that the one before rules out: what a forward pass leaves for
    each token does not shrink with their number.
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
    """Changes that need less memory, those that cost least time first."""
    yield config
    parallel = replace(config.parallel, activation_checkpointing="full")
    if parallel != config.parallel:
        yield replace(config, parallel=parallel)
    if parallel.replicate > 1:
        parallel = replace(parallel, replicate=1)
        yield replace(config, parallel=parallel)
    if config.lora is not None:  # adapters are not split
        if config.lora.base_dtype != "nf4":
            yield replace(config, parallel=parallel, lora=replace(config.lora, base_dtype="nf4"))
        return
    decoder, vision = model.decoder, model.vision
    parts = math.gcd(
        decoder.num_key_value_heads,
        decoder.intermediate_size,
        vision.num_attention_heads,
        vision.intermediate_size,
    )
    for tensor in (2, 4, 8):
        if tensor > parallel.tensor and not parts % tensor and not gpus % tensor:
            yield replace(config, parallel=replace(parallel, tensor=tensor))


# -- words -----------------------------------------------------------------------------------------------


def _shortage(plan: Plan) -> str:
    return (
        f"{settings(plan)} needs {gib(plan.trace.peak)} a GPU, but of the {gib(plan.gpu.memory)} of "
        f"{plan.gpu.name} {gib(plan.gpu.usable)} can be used"
    )


def settings(plan: Plan) -> str:
    """What decides the memory of a plan, as it is said to `owl2 train`."""
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
    """Bytes as text, as `nvidia-smi` counts."""
    return f"{size / 2**30:.1f} GiB"

"""Preparation of a stage: its folder, the model on the ranks, the dataset, and the loader of each rank."""

import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from owl2.checkpoint import load_model, resolve
from owl2.checkpoint.tensors import dtype_of
from owl2.data.dataset import SampleDataset, check_video
from owl2.data.holdout import Part
from owl2.data.loader import BatchLoader, Sampler
from owl2.data.order import Mixture, StepSampler
from owl2.data.packing import PackSampler
from owl2.data.readers.base import Source
from owl2.data.readers.sources import open_source
from owl2.devices import find_device
from owl2.errors import Faults
from owl2.processor import Processor
from owl2.train.adapters.lora import add_adapters, check_installed
from owl2.train.config import DataConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.lock import open_run_folder as open_run_folder
from owl2.train.objectives import OBJECTIVES
from owl2.train.parallel import Objective, Sharding, rewrite_layers, shard_root
from owl2.train.ranks import ALONE, Ranks, local_device
from owl2.train.state.config_diff import read_settings
from owl2.train.state.sharded import load_sharded
from owl2.train.state.state import Order, Seen
from owl2.train.trackers import check_installed as check_trackers
from owl2.train.unusable import forget_bad_samples


def on_this_machine(config: TrainConfig) -> TrainConfig:
    """The configuration with the device and type that `auto` means here.

    A run that was begun keeps its type, so that its second half is computed as its first.
    """
    device, dtype = config.device, config.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto" and (begun := config.run / "config.yaml").exists():
        dtype = read_settings(begun).get("dtype", dtype)
    if dtype == "auto":
        has_bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if has_bfloat16 else "float32"
    return replace(config, device=device, dtype=dtype)


def steps_from_epochs(config: TrainConfig, mixture: Mixture) -> TrainConfig:
    """The configuration with the `steps` that its epochs are.

    Raises:
        TrainConfigError: the warm-up is not shorter.
    """
    if config.epochs is None:
        return config
    steps = max(1, math.ceil(config.epochs * mixture.num_samples / config.global_batch_size))
    config = replace(config, steps=steps)
    config.check_warmup()
    return config


def check_machine(config: TrainConfig) -> None:
    """Raise an error if this machine lacks the device, a package or the compiler backend.

    Raises:
        DeviceError, TrainConfigError: before anything is loaded.
    """
    faults = Faults()
    with faults.collect():
        find_device(local_device(config.device))
    with faults.collect():
        check_trackers(config.trackers)
    if config.lora is not None:
        with faults.collect():
            check_installed(config.lora)
    if config.parallel.compile is not None:
        from torch._dynamo import list_backends  # takes seconds

        if config.parallel.compile not in (names := list_backends(exclude_tags=())):
            near = difflib.get_close_matches(config.parallel.compile, names, n=1, cutoff=0)[0]
            faults.add(
                TrainConfigError(
                    f"parallel.compile {config.parallel.compile!r} is no backend of torch.compile; use "
                    f"inductor or aot_eager (nearest name: {near})"
                )
            )
    faults.raise_all()


def load_stage(config: TrainConfig, ranks: Ranks = ALONE) -> tuple[Objective, Processor]:
    """Load the starting checkpoint and adapt it to the stage: resolution, visual weights, context.

    Returns the objective and the processor. The objective's `model` is whole in a single float32 process and
    else sharded over the ranks.
    """
    device = local_device(config.device)
    ranks.on_first(lambda: resolve(config.model))  # one rank downloads
    folder = resolve(config.model)
    sharding = None
    if ranks.store is None:
        model = load_model(folder, device=device, progress=False)
        if config.lora is not None:
            add_adapters(model, config.lora)
    else:
        sharding = Sharding.over(ranks, config.parallel, device, dtype_of(config.dtype))
        model = load_sharded(folder, sharding, device, config.lora)
    if config.copy_text_to_vision:
        model.copy_text_to_vision()
    if config.image_size is not None:
        model.set_image_size(config.image_size)
    rewrite_layers(model, config.parallel)
    objective = Objective(model, OBJECTIVES[config.objective], is_static=bool(config.parallel.compile))
    if sharding is not None:
        shard_root(objective, sharding)
    processor = Processor.from_folder(folder, model.config)
    return objective, processor.replace(image_size=model.config.vision.image_size)


def open_dataset(config: TrainConfig, processor: Processor) -> SampleDataset:
    """Open the corpora and mix them.

    Raises:
        TrainConfigError: samples may be longer than the decoder's context.
        DataError: a corpus cannot be read.
    """
    data = config.data
    check_context(data, processor)
    sources, mixture = open_mixture(data.sources, data.seed, data.validation_share)
    check_held_out(data, sources)
    for source in sources:
        check_video(source)
    return make_dataset(data, data.sources, sources, mixture, processor)


def check_context(data: DataConfig, processor: Processor) -> None:
    """Raise TrainConfigError if samples may be longer than the decoder's context."""
    if processor.max_tokens is not None and data.max_tokens > processor.max_tokens:
        raise TrainConfigError(
            f"data.max_tokens {data.max_tokens} exceeds the decoder's context, {processor.max_tokens} tokens"
        )


def check_held_out(data: DataConfig, sources: Sequence[Source]) -> None:
    """Raise TrainConfigError if `validation_share` holds out no sample at all."""
    if data.validation_share is not None and not any(source.num_held_out for source in sources):
        largest = max(len(source) for source in sources)
        enough = f"raise it to {math.ceil(100 / largest) / 100} or " if largest > 1 else ""
        raise TrainConfigError(
            f"data.validation_share {data.validation_share} of {largest:,} sample(s), the largest source, is "
            f"less than one; {enough}leave it out with --data.validation_share null"
        )


def make_dataset(
    data: DataConfig,
    configs: Sequence[SourceConfig],
    sources: Sequence[Source],
    mixture: Mixture,
    processor: Processor,
) -> SampleDataset:
    """The dataset of opened sources, tokenised as `data` says; also for held-out sources."""
    return SampleDataset(
        sources,
        [config.augment for config in configs],
        mixture,
        processor.replace(template=data.template).without_limit(),  # the dataset cuts to data.max_tokens
        max_tokens=data.max_tokens,
        targets=data.targets,
        num_frames=data.num_frames,
        turns_apart=[config.name for config in configs if config.turns == "apart"],
    )


def open_mixture(
    configs: Sequence[SourceConfig], seed: int, held_out: float | None = None
) -> tuple[list[Source], Mixture]:
    """Open the sources without the share that is held out, and mix them by weight."""
    sources = [open_part(config, seed, held_out) for config in configs]
    return sources, mix(configs, sources, seed)


def open_part(
    config: SourceConfig, seed: int, held_out: float | None = None, is_held_out: bool = False
) -> Source:
    """Open a source without the share that is held out, or only that share."""
    source = open_source(config.name, config.path, config.image_root, config.shuffle, config.columns)
    return source if held_out is None else Part(source, held_out, seed, is_held_out=is_held_out)


def mix(configs: Sequence[SourceConfig], sources: Sequence[Source], seed: int) -> Mixture:
    """The mixture of opened sources."""
    weights = [len(s) if c.weight == "size" else c.weight for c, s in zip(configs, sources, strict=True)]
    return Mixture([len(s) for s in sources], weights, seed, [s.in_slices for s in sources])


def order_of(config: TrainConfig, dataset: SampleDataset) -> Order:
    """What the samples of each step depend on."""
    order = {
        "samples": {source.name: len(source) for source in dataset.sources},
        "content": {source.name: source.fingerprint()[:16] for source in dataset.sources},
        "quotas": list(dataset.mixture.quotas),
        "seed": config.data.seed,
        "global_batch_size": config.global_batch_size,
        "in_slices": [source.name for source in dataset.sources if source.in_slices],
    }
    return order if order["in_slices"] else {k: v for k, v in order.items() if k != "in_slices"}


def make_loader(
    config: TrainConfig,
    dataset: SampleDataset,
    start_step: int,
    ranks: Ranks = ALONE,
    seen: Sequence[Seen] = (),
) -> BatchLoader:
    """The loader of this rank's micro-batches from `start_step` on; tensor ranks of one group read the same.

    `seen` is what the ranks drew before: unusable samples count from the beginning of the run.
    """
    name = "bad_samples.jsonl" if ranks.is_first else f"bad_samples-{ranks.rank}.jsonl"
    ranks.on_first(lambda: forget_bad_samples(config.run, start_step))
    before = share_of_seen(seen, ranks)
    return BatchLoader(
        dataset,
        sampler_of(config, dataset, start_step, ranks),
        num_workers=config.data.num_workers,
        bad_samples=config.run / name,
        max_bad_fraction=config.data.max_bad_fraction,
        num_drawn=before.drawn,
        num_bad=before.bad,
    )


def sampler_of(config: TrainConfig, dataset: SampleDataset, start_step: int, ranks: Ranks) -> Sampler:
    """Micro-batches of `micro_batch_size` samples, or packs of at most `pack_tokens` tokens."""
    span = {
        "ranks": ranks.data_size,
        "rank": ranks.data_rank,
        "start_step": start_step,
        "steps": config.steps,
    }
    if config.data.pack_tokens is not None:
        return PackSampler(dataset.size, config.global_batch_size, config.data.pack_tokens, **span)
    return StepSampler(micro_batch_size=config.micro_batch_size, accumulation=config.accumulation, **span)


def seen_of(loader: BatchLoader, ranks: Ranks) -> list[Seen]:
    """What each data rank has drawn since the run began; called by every rank."""
    return ranks.gather(Seen(loader.num_drawn, dict(loader.num_bad)))[:: ranks.tensor]


def share_of_seen(seen: Sequence[Seen], ranks: Ranks) -> Seen:
    """What this rank drew before; after a change of the number of ranks, its part of the total."""
    if len(seen) == ranks.data_size:
        return seen[ranks.data_rank]

    def part(total: int) -> int:
        return total // ranks.data_size + (ranks.data_rank < total % ranks.data_size)

    bad = sum((Counter(one.bad) for one in seen), Counter[str]())
    return Seen(part(sum(one.drawn for one in seen)), {name: part(count) for name, count in bad.items()})

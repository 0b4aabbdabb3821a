"""What a stage starts from: its model on the ranks, its corpora, and the micro-batches of each rank."""

from collections import Counter
from collections.abc import Sequence

from owl2.checkpoint import load_model
from owl2.checkpoint.tensors import dtype_of
from owl2.data.loader import BatchLoader, SampleDataset, Sampler
from owl2.data.order import Mixture, StepSampler
from owl2.data.packing import PackSampler
from owl2.data.readers.base import Source
from owl2.data.readers.sources import open_source
from owl2.processor import Processor
from owl2.train.adapters.lora import add_adapters, check_installed
from owl2.train.config import DataConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.objectives import OBJECTIVES
from owl2.train.parallel import Objective, Sharding, rewrite_layers, shard_root
from owl2.train.ranks import ALONE, Ranks, local_device
from owl2.train.state.sharded import load_sharded
from owl2.train.state.state import Order, Seen


def load_stage(config: TrainConfig, ranks: Ranks = ALONE) -> tuple[Objective, Processor]:
    """Load the starting checkpoint and make it the stage's: resolution, visual ways, context.

    Returns the objective, whose `model` is whole in one float32 process and else shared out over the ranks.
    """
    if config.lora is not None:
        check_installed(config.lora)  # before minutes of loading
    device = local_device(config.device)
    sharding = None
    if ranks.store is None:
        model = load_model(config.model, device=device, progress=False)
        if config.lora is not None:
            add_adapters(model, config.lora)
    else:
        sharding = Sharding.over(ranks, config.parallel, device, dtype_of(config.dtype))
        model = load_sharded(config.model, sharding, device, config.lora)
    if config.copy_text_to_vision:
        model.copy_text_to_vision()
    if config.image_size is not None:
        model.set_image_size(config.image_size)
    rewrite_layers(model, config.parallel)
    objective = Objective(model, OBJECTIVES[config.objective], is_static=bool(config.parallel.compile))
    if sharding is not None:
        shard_root(objective, sharding)
    processor = Processor.from_folder(config.model, model.config)
    return objective, processor.replace(image_size=model.config.vision.image_size)


def open_dataset(config: TrainConfig, processor: Processor) -> SampleDataset:
    """Open the corpora and mix them.

    Raises:
        TrainConfigError: samples may be longer than the decoder's context.
        DataError: a corpus that cannot be read.
    """
    data = config.data
    if processor.max_tokens is not None and data.max_tokens > processor.max_tokens:
        raise TrainConfigError(
            f"data.max_tokens {data.max_tokens} exceeds the decoder's context, {processor.max_tokens} tokens"
        )
    sources, mixture = open_mixture(data.sources, data.seed)
    return make_dataset(data, data.sources, sources, mixture, processor)


def make_dataset(
    data: DataConfig,
    configs: Sequence[SourceConfig],
    sources: Sequence[Source],
    mixture: Mixture,
    processor: Processor,
) -> SampleDataset:
    """SampleDataset of opened sources, held-out ones as well, that become tokens as `data` says."""
    return SampleDataset(
        sources,
        [config.augment for config in configs],
        mixture,
        processor.replace(template=data.template).without_limit(),  # the loader cuts to data.max_tokens
        data.max_tokens,
        data.targets,
        data.num_frames,
        turns_apart=[config.name for config in configs if config.turns == "apart"],
    )


def open_mixture(configs: Sequence[SourceConfig], seed: int) -> tuple[list[Source], Mixture]:
    """Open sources and mix them by their weights."""
    sources = [open_source(c.name, c.path, c.image_root, c.shuffle) for c in configs]
    weights = [len(s) if c.weight == "size" else c.weight for c, s in zip(configs, sources, strict=True)]
    mixture = Mixture([len(s) for s in sources], weights, seed, [s.in_slices for s in sources])
    return sources, mixture


def order_of(config: TrainConfig, draws: SampleDataset) -> Order:
    """What the samples of each step depend on."""
    order = {
        "samples": {source.name: len(source) for source in draws.sources},
        "quotas": list(draws.mixture.quotas),
        "seed": config.data.seed,
        "global_batch_size": config.global_batch_size,
        "in_slices": [source.name for source in draws.sources if source.in_slices],
    }
    return order if order["in_slices"] else {k: v for k, v in order.items() if k != "in_slices"}


def make_batches(
    config: TrainConfig,
    draws: SampleDataset,
    start_step: int,
    ranks: Ranks = ALONE,
    seen: Sequence[Seen] = (),
) -> BatchLoader:
    """The micro-batches of this rank from `start_step` on; ranks of one sample read the same.

    `seen` is what the ranks drew before: unusable samples count from the run's beginning.
    """
    sampler = sampler_of(config, draws, start_step, ranks)
    name = "bad_samples.jsonl" if ranks.is_first else f"bad_samples-{ranks.rank}.jsonl"
    batches = BatchLoader(
        draws,
        sampler,
        num_workers=config.data.num_workers,
        bad_samples=config.run / name,
        max_bad_fraction=config.data.max_bad_fraction,
    )
    before = share_of_seen(seen, ranks)
    batches.num_drawn = before.drawn
    batches.num_bad.update(before.bad)
    return batches


def sampler_of(config: TrainConfig, draws: SampleDataset, start_step: int, ranks: Ranks) -> Sampler:
    """Micro-batches of so many samples each, or packs of at most so many tokens."""
    span = {
        "ranks": ranks.data_size,
        "rank": ranks.data_rank,
        "start_step": start_step,
        "steps": config.steps,
    }
    if config.data.pack_tokens is not None:
        return PackSampler(draws.size, config.global_batch_size, config.data.pack_tokens, **span)
    return StepSampler(micro_batch_size=config.micro_batch_size, accumulation=config.accumulation, **span)


def seen_of(batches: BatchLoader, ranks: Ranks) -> list[Seen]:
    """What each rank that reads other samples has drawn since the run began; called by every rank."""
    return ranks.gather(Seen(batches.num_drawn, dict(batches.num_bad)))[:: ranks.tensor]


def share_of_seen(seen: Sequence[Seen], ranks: Ranks) -> Seen:
    """What this rank drew before; if there were more or fewer ranks, its part of what all of them drew."""
    if len(seen) == ranks.data_size:
        return seen[ranks.data_rank]

    def part(total: int) -> int:
        return total // ranks.data_size + (ranks.data_rank < total % ranks.data_size)

    bad = sum((Counter(one.bad) for one in seen), Counter[str]())
    return Seen(part(sum(one.drawn for one in seen)), {name: part(count) for name, count in bad.items()})

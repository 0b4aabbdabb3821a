"""Validation: the loss of held-out samples, source by source, during a run.

A source's loss is the mean over all target tokens of its first samples, so sources with short and with long
answers are not comparable with each other. Generated answers are scored by `owl2 eval` on a checkpoint:
generating inside the loop would make every rank wait for the slowest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from rich.console import Console

from owl2.data.dataset import SampleDataset
from owl2.data.loader import Batch, Collate
from owl2.data.order import Draw, Mixture
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError
from owl2.processor import Processor
from owl2.train.config import TrainConfig
from owl2.train.metrics import append_row, drop_steps_from
from owl2.train.parallel import Objective, reshard, with_image
from owl2.train.prepare import make_dataset
from owl2.train.ranks import Ranks, local_device


class FirstSamples(Mixture):
    """The samples of one source in file order."""

    def __init__(self, size: int):
        super().__init__([size], [1.0], seed=0)

    def __getitem__(self, n: int) -> Draw:
        return Draw(source=0, index=n, seed=0)


class Validation:
    """Measures the held-out sources and appends one object per measurement to `validation.jsonl`."""

    def __init__(self, config: TrainConfig, processor: Processor, start: int, ranks: Ranks, console: Console):
        assert config.validation is not None
        self.config = config
        self.ranks = ranks
        self.console = console
        self.path = config.run / "validation.jsonl"
        self.datasets: dict[str, SampleDataset] = {}
        for held_out in config.validation.sources:
            plain = replace(held_out, augment="none")
            source = open_source(plain.name, plain.path, plain.image_root, plain.shuffle, plain.columns)
            if source.lost:
                files = "; ".join(f"{file}: {reason}" for file, reason in source.lost)
                text = f"validation: {source.lost_share:.1%} of {plain.name} is left out with {files}"
                console.print(text, soft_wrap=True, highlight=False)
            mixture = FirstSamples(len(source))
            self.datasets[plain.name] = make_dataset(config.data, [plain], [source], mixture, processor)
        if ranks.is_first:
            drop_steps_from(self.path, start)

    def is_due(self, step: int) -> bool:
        """Whether to measure after `step` finished steps: at regular intervals and after the last."""
        assert self.config.validation is not None
        return step % self.config.validation.every == 0 or step == self.config.steps

    @torch.no_grad()
    def measure(self, objective: Objective, step: int) -> dict[str, float]:
        """The loss per target token of each source; called by every rank."""
        row: dict[str, float] = {"step": step}
        for name, dataset in self.datasets.items():
            self.ranks.report(f"validating on {name} after step {step}")
            loss = targets = bad = 0.0
            for batch, num_bad in self._batches(dataset):
                bad += num_bad
                if self.ranks.store is not None:
                    batch = with_image(batch, objective.model.config)
                if batch is not None:
                    losses = objective(batch.to(local_device(self.config.device)))
                    loss += losses.double().sum().item()
                    targets += batch.targets.count
            loss, targets, bad = self.ranks.sum_samples([loss, targets, bad])
            if not targets:
                raise DataError(f"validation: none of the {bad:.0f} samples of {name} could be used")
            row[f"loss/{name}"] = loss / targets
            if bad:
                self.console.print(f"validation: {bad:.0f} samples of {name} could not be used")
        reshard(objective)
        if self.ranks.is_first:
            append_row(self.path, row)
            losses = "  ".join(f"{name} {row[f'loss/{name}']:.3f}" for name in self.datasets)
            self.console.print(f"validation after step {step}: {losses}", highlight=False)
        return row

    def _batches(self, dataset: SampleDataset) -> Iterator[tuple[Batch | None, int]]:
        """This rank's micro-batches, each with its number of unusable samples; equally many on every rank."""
        assert self.config.validation is not None
        num_samples = min(len(dataset.sources[0]), self.config.validation.max_samples)
        collate = Collate(dataset.processor)
        for numbers in shares(num_samples, self.config.micro_batch_size, self.ranks):
            batch, bad = collate([dataset[n] for n in numbers])
            yield batch, len(bad)


def shares(num_samples: int, micro_batch_size: int, ranks: Ranks) -> Iterator[Sequence[int]]:
    """The sample numbers of each micro-batch of this rank; the last ones may be short or empty."""
    stride = micro_batch_size * ranks.data_size
    for begin in range(0, num_samples, stride):
        yield range(begin + ranks.data_rank, min(begin + stride, num_samples), ranks.data_size)

"""The loss of samples that are never trained on, source by source, while a run goes on.

A source's loss is the mean over all target tokens of its first samples, so sources of short and of long
answers can be compared with themselves only. Answers are judged by `owl2 eval` on a checkpoint: generating
text inside the loop would make every rank wait for the slowest.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from rich.console import Console

from owl2.data.loader import Batch, Collate, SampleDataset
from owl2.data.order import Draw, Mixture
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError
from owl2.processor import Processor
from owl2.train.config import TrainConfig
from owl2.train.metrics import drop_steps_from
from owl2.train.parallel import Objective, reshard, with_image
from owl2.train.prepare import make_dataset
from owl2.train.ranks import Ranks, local_device


class FirstSamples(Mixture):
    """The samples of one source in their own order, from the first."""

    def __init__(self, size: int):
        super().__init__([size], [1.0], seed=0)

    def __getitem__(self, n: int) -> Draw:
        return Draw(source=0, index=n, seed=0)


class Validation:
    """Measures the held-out sources and writes `validation.jsonl`, one object each time."""

    def __init__(self, config: TrainConfig, processor: Processor, start: int, ranks: Ranks, console: Console):
        assert config.validation is not None
        self.config = config
        self.ranks = ranks
        self.console = console
        self.path = config.run / "validation.jsonl"
        self.draws = {}
        for held_out in config.validation.sources:
            plain = replace(held_out, augment="none")
            source = open_source(plain.name, plain.path, plain.image_root, plain.shuffle)
            mixture = FirstSamples(len(source))
            self.draws[plain.name] = make_dataset(config.data, [plain], [source], mixture, processor)
        if ranks.is_first:
            drop_steps_from(self.path, start)

    def is_due(self, step: int) -> bool:
        """Whether to measure after `step` finished steps: at regular intervals and at the end."""
        assert self.config.validation is not None
        return step % self.config.validation.every == 0 or step == self.config.steps

    @torch.no_grad()
    def measure(self, objective: Objective, step: int) -> dict[str, float]:
        """The loss a target token of each source; called by every rank."""
        row: dict[str, float] = {"step": step}
        for name, draws in self.draws.items():
            self.ranks.report(f"validating on {name} after step {step}")
            loss = targets = bad = 0.0
            for batch, num_bad in self._batches(draws):
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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            said = "  ".join(f"{name} {row[f'loss/{name}']:.3f}" for name in self.draws)
            self.console.print(f"validation after step {step}: {said}", highlight=False)
        return row

    def _batches(self, draws: SampleDataset) -> Iterator[tuple[Batch | None, int]]:
        """This rank's micro-batches and how many of their samples are unusable; as many on every rank."""
        assert self.config.validation is not None
        num_samples = min(len(draws.sources[0]), self.config.validation.max_samples)
        collate = Collate(draws.processor)
        for numbers in shares(num_samples, self.config.micro_batch_size, self.ranks):
            batch, bad = collate([draws[n] for n in numbers])
            yield batch, len(bad)


def shares(num_samples: int, micro_batch_size: int, ranks: Ranks) -> Iterator[Sequence[int]]:
    """The samples of each micro-batch of this rank; the last ones may be short or empty."""
    stride = micro_batch_size * ranks.data_size
    for begin in range(0, num_samples, stride):
        yield range(begin + ranks.data_rank, min(begin + stride, num_samples), ranks.data_size)

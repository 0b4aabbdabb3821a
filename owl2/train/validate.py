"""Validation: the loss of held-out samples, source by source, and answers to a few of them, during a run.

A source's loss is the mean over all target tokens of its first samples, so sources with short and with long
answers are not comparable with each other. The answers (answers.py) are for people to read; what can be
scored is scored by `owl2 eval` on a checkpoint.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from rich.console import Console

from owl2.data.dataset import UNUSABLE, SampleDataset, check_video
from owl2.data.loader import Batch, Collate
from owl2.data.order import Draw, Mixture
from owl2.data.readers.base import Source
from owl2.data.sample import DataError
from owl2.processor import Processor
from owl2.train.answers import SAMPLES, Answer, Question, answer, keep_images, questions_of
from owl2.train.config import SourceConfig, TrainConfig, steps_of
from owl2.train.metrics import append_row, drop_steps_from
from owl2.train.parallel import Objective, reshard, with_image
from owl2.train.prepare import make_dataset, open_part
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
        self.processor = processor
        self.every = max(1, steps_of(config.validation.every, config.steps))
        self.num_samples = config.validation.samples or 0
        self.answers: list[Answer] = []
        """The last ones."""
        self.ranks = ranks
        self.console = console
        self.path = config.run / "validation.jsonl"
        self.datasets: dict[str, SampleDataset] = {}
        for plain, source in held_out_sources(config):
            check_video(source)
            if source.lost:
                files = "; ".join(f"{file}: {reason}" for file, reason in source.lost)
                text = f"validation: {source.lost_share:.1%} of {plain.name} is left out with {files}"
                console.print(text, soft_wrap=True, highlight=False)
            mixture = FirstSamples(len(source))
            self.datasets[plain.name] = make_dataset(config.data, [plain], [source], mixture, processor)
        self.questions = self._questions()
        if ranks.is_first:
            drop_steps_from(self.path, start)
            drop_steps_from(config.run / SAMPLES, start)
            if self.questions:
                keep_images(self.questions, config.run / "samples")

    def is_due(self, step: int) -> bool:
        """Whether to measure after `step` finished steps: at regular intervals and after the last."""
        return step % self.every == 0 or step == self.config.steps

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
        if self.questions:
            self.ranks.report(f"answering held-out samples after step {step}")
            self.answers = answer(objective, self.processor, self.questions)
        if self.ranks.is_first:
            append_row(self.path, row)
            losses = "  ".join(f"{name} {row[f'loss/{name}']:.3f}" for name in self.datasets)
            self.console.print(f"validation after step {step}: {losses}", highlight=False)
            for said in self.answers:
                append_row(self.config.run / SAMPLES, said.row(step))
                self.console.print(_line(said), markup=False, highlight=False, soft_wrap=True)
        return row

    def _questions(self) -> list[Question]:
        """The last question of the first samples that can be used, from each source in turn."""
        found: list[Question] = []
        longest = max(len(dataset.sources[0]) for dataset in self.datasets.values())
        for n in range(longest if self.num_samples else 0):
            for dataset in self.datasets.values():
                if n < len(dataset.sources[0]) and len(found) < self.num_samples:
                    with suppress(*UNUSABLE):  # counted with the losses
                        found += [*questions_of(dataset, n, is_last=True)][-1:]
            if len(found) == self.num_samples:
                break
        return found

    def _batches(self, dataset: SampleDataset) -> Iterator[tuple[Batch | None, int]]:
        """This rank's micro-batches, each with its number of unusable samples; equally many on every rank."""
        assert self.config.validation is not None
        num_samples = min(len(dataset.sources[0]), self.config.validation.max_samples)
        collate = Collate(dataset.processor)
        for numbers in shares(num_samples, self.config.micro_batch_size, self.ranks):
            batch, bad = collate([dataset[n] for n in numbers])
            yield batch, len(bad)


def held_out_sources(config: TrainConfig) -> Iterator[tuple[SourceConfig, Source]]:
    """What is held out of the corpora, then the validation's own sources; none of them augmented."""
    assert config.validation is not None
    share = config.data.validation_share
    parts = [] if share is None else config.data.sources
    for given in (*parts, *config.validation.sources):
        source = open_part(given, config.data.seed, share if given in parts else None, is_held_out=True)
        if len(source):
            yield replace(given, augment="none"), source


def _line(said: Answer) -> str:
    """A sample answer in one line."""
    question, expected, text = (
        textwrap.shorten(text, 60, placeholder=" ...")
        for text in (said.question.text or "(image)", said.question.expected, said.text)
    )
    is_expected = "as expected" if said.is_expected else f"expected: {expected}"
    return f"  {said.question.key}  {question}  ->  {text}  ({is_expected})"


def shares(num_samples: int, micro_batch_size: int, ranks: Ranks) -> Iterator[Sequence[int]]:
    """The sample numbers of each micro-batch of this rank; the last ones may be short or empty."""
    stride = micro_batch_size * ranks.data_size
    for begin in range(0, num_samples, stride):
        yield range(begin + ranks.data_rank, min(begin + stride, num_samples), ranks.data_size)

"""The run summary: parameters by rule, corpora, devices. Shown at the start and kept for the report.

`facts.json` is in the run's folder because the model and the corpora may be elsewhere, or deleted, when
somebody asks what was trained.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from owl2.data.dataset import SampleDataset
from owl2.data.order import BLOCK
from owl2.data.readers.base import Source
from owl2.errors import Owl2Error
from owl2.files import write_file
from owl2.model import Owl2Model
from owl2.train.config import TrainConfig
from owl2.train.ranks import Ranks
from owl2.train.rules import Assignment, Rule

FILE = "facts.json"

Cells = tuple[str, ...]
GROUP_HEAD: Cells = ("rule", "tensors", "parameters", "learning rate", "weight decay")
CORPUS_HEAD: Cells = ("source", "samples", "share of samples", "incomplete", "left out")
LOST_HEAD: Cells = ("source", "file left out", "reason")


class SummaryError(Owl2Error, ValueError):
    """A summary that cannot be read."""


@dataclass(frozen=True)
class Group:
    """The parameters that one rule decides for."""

    rule: str
    tensors: int
    parameters: int
    lr: tuple[float, float] | None
    """Lowest and highest peak learning rate; None if frozen."""
    weight_decay: tuple[float, float] | None


@dataclass(frozen=True)
class Corpus:
    """A source of the mixture."""

    name: str
    samples: int
    share: float
    """Of the samples that the mixture takes."""
    incomplete: int
    """Samples that are never used because a part (image or caption) is missing."""
    held_out: int = 0
    """Samples that are kept for validation, in addition to `samples`."""
    lost: list[tuple[str, str]] = field(default_factory=list)
    """Files left out whole, with the reason."""
    lost_share: float = 0.0
    """Estimated share of the corpus in these files."""

    @classmethod
    def of(cls, source: Source, share: float) -> "Corpus":
        return cls(
            name=source.name,
            samples=len(source),
            share=share,
            incomplete=source.num_incomplete,
            held_out=source.num_held_out,
            lost=[(file, reason) for file, reason in source.lost],
            lost_share=source.lost_share,
        )


@dataclass(frozen=True)
class Summary:
    """What a run consists of."""

    groups: list[Group]
    corpora: list[Corpus]
    ranks: int
    device: str
    dtype: str = ""
    steps: int = 0
    """Of the whole run, also where the configuration gives epochs."""

    @classmethod
    def of(
        cls,
        model: Owl2Model,
        assignments: Sequence[Assignment],
        dataset: SampleDataset,
        config: TrainConfig,
        ranks: Ranks,
    ) -> "Summary":
        device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "CPU"
        groups = [_group(model, rule, assignments, config.optim.lr) for rule in config.rules]
        corpora = [
            Corpus.of(source, quota / BLOCK)
            for source, quota in zip(dataset.sources, dataset.mixture.quotas, strict=True)
        ]
        return cls(groups, corpora, ranks.size, device, config.dtype, config.steps)

    @classmethod
    def read(cls, run: Path) -> "Summary | None":
        """The summary in a run's folder; None if it has none yet.

        Raises:
            SummaryError: the file is damaged.
        """
        path = run / FILE
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            groups = [Group(**group) for group in record.pop("groups")]
            corpora = [Corpus(**corpus) for corpus in record.pop("corpora")]
            return cls(groups=groups, corpora=corpora, **record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SummaryError(
                f"{path} cannot be read ({type(error).__name__}: {error}); delete it, the next start of the "
                f"run writes it again"
            ) from None

    def write(self, run: Path) -> None:
        """Keep the summary in the run's folder."""
        write_file(run / FILE, json.dumps(dataclasses.asdict(self), indent=1).encode())

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(group.parameters for group in self.groups)

    @property
    def trainable(self) -> int:
        """Parameters that are not frozen."""
        return sum(group.parameters for group in self.groups if group.lr is not None)

    def group_rows(self) -> list[Cells]:
        """One row per rule, in their order: number of parameters, learning rate, weight decay."""
        return [
            (
                group.rule,
                f"{group.tensors:,}",
                f"{group.parameters:,}",
                "frozen" if group.lr is None else _span(group.lr),
                "" if group.weight_decay is None else _span(group.weight_decay),
            )
            for group in self.groups
        ]

    def corpus_rows(self) -> list[Cells]:
        """One row per corpus: its size, its share of the mixture, and what of it is not used."""
        return [
            (
                corpus.name,
                f"{corpus.samples:,}" + f" ({corpus.held_out:,} held out)" * bool(corpus.held_out),
                f"{corpus.share:.1%}",
                f"{corpus.incomplete:,}",
                f"{len(corpus.lost):,} file(s), {corpus.lost_share:.1%}" if corpus.lost else "0",
            )
            for corpus in self.corpora
        ]

    def lost_rows(self) -> list[Cells]:
        """One row per file that was left out."""
        return [(corpus.name, file, reason) for corpus in self.corpora for file, reason in corpus.lost]

    def line(self, config: TrainConfig) -> str:
        """The length of the run and what computes it, in a sentence."""
        epochs = ""
        if config.epochs is not None:
            total = sum(corpus.samples for corpus in self.corpora if corpus.share)
            epochs = f"{config.epochs:g} epochs of {total:,} samples are "
        return (
            f"{epochs}{self.steps:,} steps of {config.global_batch_size:,} samples, in {self.dtype} on "
            f"{self.ranks} x {self.device}"
        )

    def tables(self) -> list[Table]:
        """For the console: parameters, corpora and, if there are any, lost files."""
        tables = [("parameters", GROUP_HEAD, self.group_rows()), ("data", CORPUS_HEAD, self.corpus_rows())]
        if lost := self.lost_rows():
            tables.append(("files left out", LOST_HEAD, lost))
        return [_table(title, head, rows) for title, head, rows in tables]


def _group(model: Owl2Model, rule: Rule, assignments: Sequence[Assignment], lr: float) -> Group:
    members = [a for a in assignments if a.rule is rule]
    rates = [a.lr * lr for a in members]
    decays = [a.weight_decay for a in members]
    return Group(
        rule=rule.match,
        tensors=len(members),
        parameters=sum(model.get_parameter(a.name).numel() for a in members),
        lr=None if rule.frozen else (min(rates), max(rates)),
        weight_decay=None if rule.frozen else (min(decays), max(decays)),
    )


def _span(values: Sequence[float]) -> str:
    low, high = values
    return f"{high:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(head):
        table.add_column(
            column, justify="right" if place and head is not LOST_HEAD else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table

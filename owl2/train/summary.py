"""What a run consists of: parameters by rule, corpora, devices. Said at the start, kept for the report.

`facts.json` stands in the run's folder because the model and the corpora may be elsewhere, or gone, when
somebody asks what was trained.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from owl2.data.loader import SampleDataset
from owl2.data.order import BLOCK
from owl2.files import write_file
from owl2.model import Owl2Model
from owl2.train.ranks import Ranks
from owl2.train.rules import Assignment, Rule

FILE = "facts.json"


@dataclass(frozen=True)
class Group:
    """The parameters for which one rule decides."""

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
    """Of the draws."""
    incomplete: int
    """Samples that are there but can never be drawn."""


@dataclass(frozen=True)
class Summary:
    """What a run consists of."""

    groups: list[Group]
    corpora: list[Corpus]
    ranks: int
    device: str

    @classmethod
    def of(
        cls,
        model: Owl2Model,
        rules: Sequence[Rule],
        assignments: Sequence[Assignment],
        lr: float,
        draws: SampleDataset,
        ranks: Ranks,
    ) -> "Summary":
        device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "CPU"
        corpora = [
            Corpus(source.name, len(source), quota / BLOCK, source.num_incomplete)
            for source, quota in zip(draws.sources, draws.mixture.quotas, strict=True)
        ]
        return cls([_group(model, rule, assignments, lr) for rule in rules], corpora, ranks.size, device)

    @classmethod
    def read(cls, run: Path) -> "Summary | None":
        """The facts of a run's folder; None if it has none yet."""
        path = run / FILE
        if not path.exists():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        groups = [Group(**group) for group in record.pop("groups")]
        corpora = [Corpus(**corpus) for corpus in record.pop("corpora")]
        return cls(groups=groups, corpora=corpora, **record)

    def write(self, run: Path) -> None:
        """Keep them in the run's folder."""
        write_file(run / FILE, json.dumps(dataclasses.asdict(self), indent=1).encode())

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(group.parameters for group in self.groups)

    @property
    def learning(self) -> int:
        """Parameters that are not frozen."""
        return sum(group.parameters for group in self.groups if group.lr is not None)

    def group_rows(self) -> list[tuple[str, ...]]:
        """One row a rule, in the order in which they decide: how many parameters, how fast they learn."""
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

    def corpus_rows(self) -> list[tuple[str, ...]]:
        """One row a corpus: how large it is, how much of it is drawn, how much of it can never be."""
        return [
            (corpus.name, f"{corpus.samples:,}", f"{corpus.share:.1%}", f"{corpus.incomplete:,}")
            for corpus in self.corpora
        ]

    def tables(self) -> tuple[Table, Table]:
        """Both for the console."""
        return _table("parameters", GROUP_HEAD, self.group_rows()), _table(
            "data", CORPUS_HEAD, self.corpus_rows()
        )


GROUP_HEAD = ("rule", "tensors", "parameters", "learning rate", "weight decay")
CORPUS_HEAD = ("source", "samples", "share of draws", "incomplete")


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
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table

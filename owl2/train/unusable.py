"""Samples that cannot be used, while a run trains: counted over all ranks, and said where a person sees it.

The loader of each rank records them with their reasons in `bad_samples.jsonl` (of the first rank) and
`bad_samples-RANK.jsonl`.
"""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from owl2.data.loader import BatchLoader
from owl2.train.metrics import drop_steps_from
from owl2.train.ranks import Ranks


def forget_bad_samples(run: Path, start_step: int) -> None:
    """Remove what was recorded after `start_step`; at the start of a run, all of a try that failed."""
    for path in run.glob("bad_samples*.jsonl"):
        if start_step:
            drop_steps_from(path, start_step)
        else:
            path.unlink()


class Unusable:
    """What could not be used so far, counted over all ranks and said on the console.

    A line comes with the first sample or question, and whenever their number has doubled.
    """

    def __init__(self, loader: BatchLoader, run: Path, ranks: Ranks, console: Console):
        self.loader = loader
        self.run = run
        self.ranks = ranks
        self.console = console
        self.said = 0
        self.total, _, _ = self._sums()

    def _sums(self) -> list[int]:
        """Samples that cannot be used, samples drawn, and questions that cannot be used."""
        loader = self.loader
        counts = [loader.num_bad.total(), loader.num_drawn, loader.num_questions]
        return [int(count) for count in self.ranks.sum_samples([float(count) for count in counts])]

    def update(self) -> dict[str, int]:
        """The metrics of a finished step: `bad` in it, and `bad_samples` since the run began, if any."""
        total, drawn, questions = self._sums()
        new, self.total = total - self.total, total
        if (new or questions) and total + questions >= 2 * self.said:
            self.said = total + questions
            self._say(total, drawn)
        return {"bad": new, **({"bad_samples": total} if total else {})}

    def _say(self, total: int, drawn: int) -> None:
        of_ranks = self.ranks.gather((self.loader.num_bad_by_kind, self.loader.last_bad))
        kinds = sum((Counter(kinds) for kinds, _ in of_ranks), Counter[tuple[str, str]]())
        shown = ", ".join(f"{count:,} x {source}: {kind}" for (source, kind), count in kinds.most_common(5))
        last = next(bad for _, bad in of_ranks if bad is not None)
        self.console.print(
            f"[bold red]{total:,} of {drawn:,} samples could not be used so far[/] ({escape(shown)}). The "
            f"last: {escape(last['key'])}: {escape(last['reason'])}. All are in {self.run}/bad_samples.jsonl",
            soft_wrap=True,
            highlight=False,
        )

"""Tables and bars of `owl2 data`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from owl2.data.inspect.inspection import Inspection
from owl2.data.inspect.page import facts, reasons
from owl2.data.order import Mixture
from owl2.data.readers.base import Source
from owl2.data.recipes.convert import JobResult, Report
from owl2.data.recipes.recipe import Recipe, all_recipes

NOT_IN_PAPER = "not in the paper's mixture"


def print_corpora(source: Path | None) -> None:
    """Every corpus with its files, and which of them are in the folder of downloads."""
    console = Console(soft_wrap=True, highlight=False)
    for stage, title in (("pretrain", "Pre-training"), ("instruct", "Instruction tuning")):
        recipes = [recipe() for recipe in all_recipes().values() if recipe.stage == stage]
        total = sum(recipe.weight for recipe in recipes if recipe.in_paper)
        console.print(f"\n[bold]{title}[/]")
        for recipe in recipes:
            there = "+" if console.options.ascii_only else "✓"
            share = f"{recipe.weight / total:.1%} of the samples"
            console.print(_describe(recipe, share if recipe.in_paper else NOT_IN_PAPER, source, there))


def _describe(recipe: Recipe, share: str, source: Path | None, there: str) -> str:
    laid_out = recipe.at(source) if source else recipe
    found = laid_out.locate(source)[0] if source else {}
    lines = [
        f"\n[bold]{recipe.name:14}[/] {recipe.title}: {recipe.size}; {share}",
        f"{'':14} licence: {recipe.licence}",
    ]
    for file in laid_out.files:
        mark = "-" if source is None else f"[green]{there}[/]" if file.path in found else "[red]missing[/]"
        lines.append(f"{'':14} {mark} {file.path} [dim]{file.origin}[/]")
    return "\n".join(lines)


@contextmanager
def progress(title: str) -> Iterator[Callable[[JobResult, int | None], None]]:
    """A bar on standard error while a corpus is converted, if a person is watching."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, counts="reading")
        counts = [0, 0]

        def on_part(part: JobResult, num_parts: int | None) -> None:
            counts[0] += part.num_samples
            counts[1] += len(part.rejected)
            text = f"{counts[0]:,} samples, {counts[1]:,} left out"
            bar.update(task, advance=1, total=num_parts, counts=text)

        yield on_part


def print_reports(reports: Sequence[Report], out: Path) -> None:
    """How many samples each corpus gave, and what was left out."""
    table = Table(
        "corpus", "samples", "left out", "why", "weight", title=f"Written to {out}", title_justify="left"
    )
    for number in (1, 2, 4):
        table.columns[number].justify = "right"
    for report in reports:
        why = [f"{count:,} {reason}" for reason, count in report.bad.items()]
        if report.num_not_fetched:
            why.append(f"[dim]{report.num_not_fetched:,} addresses were never fetched[/]")
        counts = (f"{report.num_samples:,}", f"{report.num_bad:,}")
        table.add_row(report.name, *counts, "\n".join(why), f"{report.weight:g}")
    console = Console()
    console.print(table)
    if any(report.num_bad for report in reports):
        console.print(f"{out}/NAME.bad.jsonl lists what was left out, record by record.")


def print_shares(sources: Sequence[Source], order: Mixture, draws: int) -> None:
    """The intended and the actual share of each source in the first samples of a run."""
    table = Table(title=f"{draws:,} samples", title_justify="left")
    for column in ("source", "samples", "intended", "actual", "off by", "drawn", "passes"):
        table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
    for source, weight, drawn in zip(sources, order.weights, order.counts(draws), strict=True):
        intended, actual = weight / sum(order.weights), drawn / draws
        off = f"{abs(actual / intended - 1):.2%}" if intended else "-"
        shares = (f"{intended:.3%}", f"{actual:.3%}", off)
        table.add_row(source.name, f"{len(source):,}", *shares, f"{drawn:,}", f"{drawn / len(source):.2f}")
    Console(soft_wrap=True).print(table)


def print_inspection(found: Inspection, out: Path) -> None:
    """Counts, lengths and faults of a source, and where its samples can be seen."""
    console = Console(soft_wrap=True, highlight=False)
    for value, what in facts(found):
        console.print(f"{value:>12}  {what}")
    buckets = found.histogram()
    top = max((count for _, _, count in buckets), default=1)
    block = "#" if console.options.ascii_only else "█"
    console.print(f"\nlength in {found.unit}")
    for first, last, count in buckets:
        console.print(f"{first:>7,} to {last:<7,} {block * round(40 * count / top):40} {count:,}")
    for count, _, example in reasons(found):
        console.print(Text(f"{count:>12,}  broken, as {example}", style="red"))
    console.print(f"\nsamples as the model sees them: {out}")

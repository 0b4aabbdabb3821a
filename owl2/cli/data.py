"""`owl2 data list | convert | inspect`: which corpora there are, making them trainable, looking at them.

Packages are imported when a command runs, so that help comes at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from owl2.cli.arguments import run_function

if TYPE_CHECKING:
    from owl2.data.convert import PartResult, Report
    from owl2.data.recipe import Recipe

COMMANDS = {
    "list": "every corpus: licence, size, where to get it, what is missing",
    "convert": "official files of a corpus to what training reads",
    "inspect": "counts, lengths, broken samples, and a page of samples as the model sees them",
}


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 data COMMAND`."""
    words = list(arguments)
    command = words.pop(0) if words else "--help"
    if command in ("-h", "--help"):
        print("usage: owl2 data COMMAND [options]   (owl2 data COMMAND --help lists them)\n")
        print("\n".join(f"  {name:8} {line}" for name, line in COMMANDS.items()))
        return
    functions = {"list": list_corpora, "convert": convert, "inspect": inspect}
    if command not in functions:
        print(f"owl2 data: no command {command!r}; there are {', '.join(functions)}", file=sys.stderr)
        raise SystemExit(2)
    run_function(functions[command], words, command=f"data {command}")


def list_corpora(*, source: Path | None = None) -> None:
    """Show every corpus, its licence and size, where to get it, and what is missing.

    Args:
        source: the folder of downloads; shows which files are there.
    """
    from rich.console import Console

    from owl2.data.recipe import all_recipes

    console = Console(soft_wrap=True, highlight=False)
    for stage, title in (("pretrain", "Pre-training"), ("instruct", "Instruction tuning")):
        recipes = [r() for r in all_recipes().values() if r.stage == stage]
        total = sum(recipe.weight for recipe in recipes)
        console.print(f"\n[bold]{title}[/]")
        for recipe in recipes:
            console.print(_describe(recipe, recipe.weight / total, source))


def convert(recipe: str, *, source: Path, out: Path, workers: int = os.cpu_count() or 1) -> None:
    """Turn official files into JSONL or shards, with a mixture file beside; the same command continues it.

    Args:
        recipe: a name of `owl2 data list`, several with commas, or a stage: pretrain, instruct.
        source: the folder of downloads: the corpus's own files, or a folder for each corpus.
        out: where the results go.
        workers: processes; the result is the same for any number.
    """
    from owl2.data.convert import convert as convert_corpus
    from owl2.data.recipe import FilesMissing, find_recipes
    from owl2.data.sample import DataError

    try:
        recipes = find_recipes(recipe)
        reports, absent = [], []
        for chosen in recipes:
            with _progress(chosen.title) as on_part:
                try:
                    reports.append(convert_corpus(chosen, source, out, workers=workers, on_part=on_part))
                except FilesMissing as error:
                    absent.append(error)
    except (DataError, OSError) as error:
        print(f"owl2 data: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if reports:
        _print_reports(reports, out)
    if absent:
        print("\n".join(f"owl2 data: {error}" for error in absent), file=sys.stderr)
        raise SystemExit(1)


def inspect(
    path: Path,
    *,
    model: str | None = None,
    image_root: Path | None = None,
    augment: str = "none",
    samples: int = 1000,
    out: Path = Path("inspect.html"),
) -> None:
    """Count, measure and show the samples of a source: a .jsonl file or a folder of .tar shards.

    Args:
        path: what training would read.
        model: checkpoint folder whose tokenizer, template and picture size are used.
        image_root: where a .jsonl file's image paths begin; default: its folder.
        augment: as in a stage's configuration: none, crop, flip or crop_flip.
        samples: how many are opened, drawn by lot; 0 for all.
        out: the page of samples to write.
    """
    raise SystemExit(f"{path} {model} {image_root} {augment} {samples} {out}")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[PartResult, int | None], None]]:
    """A bar on standard error while a corpus is converted, if a person is watching."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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

        def on_part(part: PartResult, num_parts: int | None) -> None:
            counts[0] += part.num_samples
            counts[1] += len(part.rejected)
            text = f"{counts[0]:,} samples, {counts[1]:,} left out"
            bar.update(task, advance=1, total=num_parts, counts=text)

        yield on_part


def _print_reports(reports: Sequence[Report], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "corpus", "samples", "left out", "why", "share", title=str(out / "mixture.yaml"), title_justify="left"
    )
    for number in (1, 2, 4):
        table.columns[number].justify = "right"
    total = sum(report.weight for report in reports)
    for report in reports:
        reasons = [f"{count:,} {reason}" for reason, count in report.bad.items()]
        if report.num_not_fetched:
            reasons.append(f"[dim]{report.num_not_fetched:,} addresses were never fetched[/]")
        share = f"{report.weight / total:.1%}"
        table.add_row(
            report.name, f"{report.num_samples:,}", f"{report.num_bad:,}", "\n".join(reasons), share
        )
    console = Console()
    console.print(table)
    if any(report.num_bad for report in reports):
        console.print(f"What was left out is listed in {out}/NAME.bad.jsonl, record by record.")


def _describe(recipe: Recipe, share: float, source: Path | None) -> str:
    laid_out = recipe.at(source) if source else recipe
    found = laid_out.locate(source)[0] if source else {}
    lines = [
        f"\n[bold]{recipe.name:14}[/] {recipe.title}: {recipe.size}; {share:.1%} of the draws",
        f"{'':14} licence: {recipe.licence}",
    ]
    for file in laid_out.files:
        mark = "·" if source is None else "[green]✓[/]" if file.path in found else "[red]missing[/]"
        lines.append(f"{'':14} {mark} {file.path} [dim]{file.origin}[/]")
    return "\n".join(lines)

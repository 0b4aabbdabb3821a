"""`owl2 data list | convert | mixture | inspect`: corpora, making them trainable, mixing and looking at them.

Packages are imported when a command runs, so that help comes at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from owl2.cli.arguments import run_function

if TYPE_CHECKING:
    from rich.table import Table

    from owl2.data.inspect.inspection import Inspection
    from owl2.data.order import Mixture
    from owl2.data.readers.base import Source
    from owl2.data.recipes.convert import JobResult, Report
    from owl2.data.recipes.recipe import Recipe
    from owl2.processor import Processor

COMMANDS = {
    "list": "every corpus: licence, size, where to get it, what is missing",
    "convert": "official files of a corpus to what training reads",
    "mixture": "what share of the draws each source should have, and gets",
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
    functions: dict[str, Callable[..., None]] = {
        "list": list_corpora,
        "convert": convert,
        "mixture": mixture,
        "inspect": inspect,
    }
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

    from owl2.data.recipes.recipe import all_recipes

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
    from owl2.data.recipes.convert import convert as convert_corpus
    from owl2.data.recipes.recipe import FilesMissing, find_recipes
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
    except KeyboardInterrupt:
        print("owl2 data: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except (DataError, OSError) as error:
        print(f"owl2 data: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if reports:
        _print_reports(reports, out)
    if absent:
        print("\n".join(f"owl2 data: {error}" for error in absent), file=sys.stderr)
        raise SystemExit(1)


def mixture(path: Path, *, draws: int = 100_000) -> None:
    """Show what share of the draws each source of a mixture should have, and gets.

    Args:
        path: the mixture file that a conversion wrote, or a stage's configuration.
        draws: how many of a run, from its first on.
    """
    import yaml
    from rich.console import Console

    from owl2.data.sample import DataError
    from owl2.train.config import SourceConfig
    from owl2.train.prepare import open_mixture

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        configs = [SourceConfig(**source) for source in data["sources"]]
        sources, order = open_mixture(configs, data.get("seed", 0))
    except (DataError, OSError) as error:
        print(f"owl2 data: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except (KeyError, TypeError, yaml.YAMLError) as error:
        print(f"owl2 data: {path} has no data.sources as a stage has them: {error!r}", file=sys.stderr)
        raise SystemExit(1) from None
    Console(soft_wrap=True).print(_shares(sources, order, draws))


def inspect(
    path: str,
    *,
    model: str | None = None,
    image_root: str | None = None,
    template: str | None = None,
    augment: Literal["none", "crop", "flip", "crop_flip"] = "none",
    max_tokens: int = 2048,
    samples: int = 1000,
    out: Path = Path("inspect.html"),
) -> None:
    """Count, measure and show the samples of a source: .jsonl, .tar shards, .parquet or .arrow.

    Args:
        path: what training would read, local or a URL.
        model: checkpoint folder whose tokenizer, template and image size are used.
        image_root: where image paths in a .jsonl file or a table begin; default: its folder.
        template: mplug_owl2 or vicuna_v1; default: the checkpoint's own.
        augment: as in a stage's configuration.
        max_tokens: longer samples are cut, as in training.
        samples: how many are opened, drawn by lot; 0 for all.
        out: the page of samples to write.
    """
    from owl2.checkpoint import CheckpointError
    from owl2.data.inspect.inspection import inspect_source
    from owl2.data.inspect.page import render_page
    from owl2.data.readers.sources import open_source
    from owl2.data.readers.storage import StorageError
    from owl2.data.sample import DataError
    from owl2.files import write_file
    from owl2.model import ConfigError
    from owl2.processor import ImageError, TemplateError, TokenizerError

    try:
        found = inspect_source(
            open_source(PurePosixPath(path).stem, path, image_root, "samples"),
            None if model is None else _processor(model),
            template=template,
            augmentation=augment,
            max_tokens=max_tokens,
            num_opened=samples,
        )
        write_file(out, render_page(found).encode())
    except (
        CheckpointError,
        ConfigError,
        DataError,
        ImageError,
        StorageError,
        TemplateError,
        TokenizerError,
        OSError,
    ) as error:
        print(f"owl2 data: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    _print_inspection(found, out)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[JobResult, int | None], None]]:
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

        def on_part(part: JobResult, num_parts: int | None) -> None:
            counts[0] += part.num_samples
            counts[1] += len(part.rejected)
            text = f"{counts[0]:,} samples, {counts[1]:,} left out"
            bar.update(task, advance=1, total=num_parts, counts=text)

        yield on_part


def _print_reports(reports: Sequence[Report], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "corpus", "samples", "left out", "why", "weight", title=f"Written to {out}", title_justify="left"
    )
    for number in (1, 2, 4):
        table.columns[number].justify = "right"
    for report in reports:
        reasons = [f"{count:,} {reason}" for reason, count in report.bad.items()]
        if report.num_not_fetched:
            reasons.append(f"[dim]{report.num_not_fetched:,} addresses were never fetched[/]")
        counts = (f"{report.num_samples:,}", f"{report.num_bad:,}")
        table.add_row(report.name, *counts, "\n".join(reasons), f"{report.weight:g}")
    console = Console()
    console.print(table)
    if any(report.num_bad for report in reports):
        console.print(f"What was left out is listed in {out}/NAME.bad.jsonl, record by record.")


def _shares(sources: Sequence[Source], order: Mixture, draws: int) -> Table:
    from rich.table import Table

    table = Table(title=f"{draws:,} draws", title_justify="left")
    for column in ("source", "samples", "intended", "actual", "off by", "drawn", "passes"):
        table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
    for source, weight, drawn in zip(sources, order.weights, order.counts(draws), strict=True):
        intended, actual = weight / sum(order.weights), drawn / draws
        off = f"{abs(actual / intended - 1):.2%}" if intended else "-"
        shares = (f"{intended:.3%}", f"{actual:.3%}", off)
        table.add_row(source.name, f"{len(source):,}", *shares, f"{drawn:,}", f"{drawn / len(source):.2f}")
    return table


def _processor(model: str) -> Processor:
    """The processor of a checkpoint."""
    from owl2.checkpoint import read_config, resolve
    from owl2.processor import Processor

    folder = resolve(model)
    return Processor.from_folder(folder, read_config(folder))


def _print_inspection(found: Inspection, out: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    from owl2.data.inspect.page import facts, reasons

    console = Console(soft_wrap=True, highlight=False)
    for value, what in facts(found):
        console.print(f"{value:>12}  {what}")
    buckets = found.histogram()
    top = max((count for _, _, count in buckets), default=1)
    console.print(f"\nlength in {found.unit}")
    for first, last, count in buckets:
        console.print(f"{first:>7,} to {last:<7,} {'█' * round(40 * count / top):40} {count:,}")
    for count, _, example in reasons(found):
        console.print(Text(f"{count:>12,}  broken, as {example}", style="red"))
    console.print(f"\nsamples as the model sees them: {out}")


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

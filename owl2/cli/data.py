"""`owl2 data`: corpora: which there are, making them trainable, mixing them and looking at samples."""

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from owl2.cli.values import Count, Seed

if TYPE_CHECKING:
    from owl2.data.recipes.convert import Share


def list_corpora(*, source: Path | None = None) -> None:
    """List every corpus: licence, size, where to get it, and what is missing.

    Args:
        source: folder of downloads; marks the files that are there.
    """
    from owl2.cli.data_tables import print_corpora

    print_corpora(source)


def convert(
    recipe: str,
    *,
    source: Path,
    out: Path,
    workers: Count | None = None,
    shard: str | None = None,
    join: bool = False,
) -> None:
    """Turn official files into JSONL or shards, with a mixture file; the same command continues.

    Args:
        recipe: a name of `owl2 data list`, several separated by commas, or a stage: pretrain, instruct.
        source: folder of downloads: the corpus's own files, or a folder for each corpus.
        out: folder of the results.
        workers: number of processes; default: one per core. The result is the same for any number.
        shard: convert a share alone, such as 3/8 on the third of eight machines; --join puts them together.
        join: put the shares together; a missing part is an error that names its share.
    """
    from owl2.cli.data_tables import print_reports, progress
    from owl2.data.recipes import convert as conversion
    from owl2.data.recipes.recipe import FilesMissing, find_recipes
    from owl2.data.sample import DataError

    share = None if shard is None else _read_share(shard, join)
    count = workers or os.cpu_count() or 1
    reports, absent = [], []
    for chosen in find_recipes(recipe):
        with progress(chosen.title) as on_part:
            try:
                if share is not None:
                    conversion.convert_share(chosen, source, out, share, workers=count, on_part=on_part)
                    print(f"{chosen.name}: share {share} is converted; after all, --join puts them together")
                elif join:
                    reports.append(conversion.join(chosen, source, out))
                else:
                    reports.append(conversion.convert(chosen, source, out, workers=count, on_part=on_part))
            except FilesMissing as error:  # the other corpora are converted all the same
                absent.append(str(error))
    if reports:
        print_reports(reports, out)
    if absent:
        raise DataError("\n".join(absent))


def _read_share(text: str, join: bool) -> "Share":
    from owl2.cli.values import UsageError, read_share
    from owl2.data.recipes.convert import Share

    if join:
        raise UsageError(f"--shard {text} makes a part and --join puts parts together; give one of them")
    return Share(*read_share(text))


def mixture(path: Path, *, draws: Count = 100_000) -> None:
    """Show the share of the samples that each source of a mixture should have, and gets.

    Args:
        path: mixture file that a conversion wrote, or a stage's configuration or name.
        draws: number of samples of a run, from its first.
    """
    from owl2.cli.data_tables import print_shares
    from owl2.cli.settings import read_yaml, stage_file
    from owl2.cli.values import UsageError, read
    from owl2.data.sample import DataError
    from owl2.train.config import SourceConfig
    from owl2.train.prepare import open_mixture

    try:
        data = read_yaml(stage_file(path)).get("data")
        if not isinstance(data, dict) or "sources" not in data:
            raise UsageError(f"{path} has no data.sources as a stage has them")
        configs = read(data["sources"], list[SourceConfig], f"{path}: data.sources")
        seed = read(data.get("seed", "0"), Seed, f"{path}: data.seed")
    except UsageError as error:
        raise DataError(str(error)) from None
    sources, order = open_mixture(configs, seed)
    print_shares(sources, order, draws)


def inspect(
    path: str,
    *,
    model: str | None = None,
    image_root: str | None = None,
    columns: dict[str, str] | None = None,
    template: str | None = None,
    augment: Literal["none", "crop", "flip", "crop_flip"] = "none",
    max_tokens: Count = 2048,
    samples: Seed = 1000,
    out: Path = Path("inspect.html"),
) -> None:
    """Count, measure and show the samples of a source: .jsonl, .json, .tar, .parquet or .arrow.

    Args:
        path: what training would read, local or a URL: a file, a folder or a pattern.
        model: checkpoint folder whose tokenizer, template and image size are used.
        image_root: folder of the image paths in rows; default: the file's own.
        columns: names of columns that are not known, such as '{conversations: dialog, image: img_path}'.
        template: mplug_owl2 or vicuna_v1; default: the checkpoint's own.
        augment: augmentation, as in a stage's configuration.
        max_tokens: longest sample; longer ones are cut, as in training.
        samples: number of random samples to open; 0 for all.
        out: HTML page to write.
    """
    from owl2.checkpoint import read_config, resolve
    from owl2.cli.data_tables import print_inspection
    from owl2.data.inspect.inspection import inspect_source
    from owl2.data.inspect.page import render_page
    from owl2.data.readers.sources import open_source
    from owl2.files import write_file
    from owl2.processor import Processor

    processor = None
    if model is not None:
        folder = resolve(model)
        processor = Processor.from_folder(folder, read_config(folder))
    found = inspect_source(
        open_source(PurePosixPath(path).stem, path, image_root, "samples", columns),
        processor,
        template=template,
        augmentation=augment,
        max_tokens=max_tokens,
        num_opened=samples,
    )
    write_file(out, render_page(found).encode())
    print_inspection(found, out)
    found.check()


COMMANDS = {"list": list_corpora, "convert": convert, "mixture": mixture, "inspect": inspect}

"""`owl2 convert`: a released checkpoint folder, pickled or not, becomes safetensors of ours, bit for bit.

Packages are imported when the command runs, so that `owl2 --help` does not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from owl2.cli.arguments import run_function


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 convert`."""
    run_function(convert, arguments, command="convert")


def convert(source: str, out: Path, *, dtype: str | None = None) -> None:
    """Write a checkpoint folder as safetensors under the released names; the source stays as it is.

    Args:
        source: checkpoint folder, released or ours, or a hub id such as owner/name.
        out: the folder to write; must not exist.
        dtype: convert the weights to float32, bfloat16 or float16; default: every tensor stays bit-equal.
    """
    from rich.console import Console
    from rich.table import Table

    from owl2.checkpoint import CheckpointError, check_absent, resolve
    from owl2.checkpoint import convert as write_converted

    try:
        check_absent(out)
        folder = resolve(source)
        done = write_converted(folder, out, dtype=dtype)
    except CheckpointError as error:
        print(f"owl2 convert: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    table = Table("", "read", "written", title=f"{folder} → {out}", title_justify="left")
    table.add_row("weights", _summary(done.read_files), _summary(done.written_files))
    table.add_row(
        "tensors", "", f"{done.num_tensors:,}, {done.num_bytes / 1e9:.3f} GB, {', '.join(done.dtypes)}"
    )
    table.add_row("values", "", "bit-equal" if dtype is None else f"converted to {dtype}")
    others = ", ".join(done.copied_files)
    table.add_row(
        "other files", others or "none", "copied as they are" if others else "no tokenizer: add its files"
    )
    Console(soft_wrap=True).print(table)


def _summary(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"

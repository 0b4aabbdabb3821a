"""`owl2 convert`: a released checkpoint folder, pickled or not, as safetensors of ours, bit for bit."""

from pathlib import Path
from typing import Literal


def convert(
    source: str, out: Path, *, dtype: Literal["float32", "bfloat16", "float16"] | None = None
) -> None:
    """Write a checkpoint folder as safetensors under the released names; the source stays as it is.

    Args:
        source: checkpoint folder, or a Hugging Face hub id such as owner/name.
        out: folder to write; it must not exist.
        dtype: type to convert the weights to; default: every tensor stays bit-equal.
    """
    from rich.console import Console
    from rich.table import Table

    from owl2.checkpoint import check_absent, resolve
    from owl2.checkpoint import convert as write_converted

    check_absent(out)
    folder = resolve(source)
    done = write_converted(folder, out, dtype=dtype)
    size = f"{done.num_tensors:,}, {done.num_bytes / 1e9:.3f} GB, {', '.join(done.dtypes)}"
    others = ", ".join(done.copied_files)
    table = Table("", "read", "written", title=f"{folder} → {out}", title_justify="left")
    table.add_row("weights", _names(done.read_files), _names(done.written_files))
    table.add_row("tensors", "", size)
    table.add_row("values", "", "bit-equal" if dtype is None else f"converted to {dtype}")
    table.add_row("other files", others or "none", "copied" if others else "no tokenizer: add its files")
    Console(soft_wrap=True).print(table)


def _names(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"

"""`owl2 convert`: a checkpoint folder as safetensors of ours, bit for bit, or its text path as GGUF."""

from pathlib import Path
from typing import Literal

from owl2.cli.values import UsageError


def convert(
    source: str, out: Path, *, dtype: Literal["float32", "bfloat16", "float16", "q8_0"] | None = None
) -> None:
    """Write a checkpoint folder as safetensors under the released names; the source stays as it is.

    An output that ends with .gguf gets the text path alone, for llama.cpp: the decoder's text weights and the
    tokenizer. Images are not in it.

    Args:
        source: checkpoint folder, or a Hugging Face hub id such as owner/name.
        out: folder, or .gguf file, to write; it must not exist.
        dtype: type to convert the weights to; default: every tensor stays bit-equal, in GGUF float16. q8_0 is
            of GGUF alone, and bfloat16 is not.
    """
    from rich.console import Console
    from rich.table import Table

    from owl2.checkpoint import check_absent, resolve
    from owl2.checkpoint import convert as write_converted

    is_gguf = out.suffix == ".gguf"
    if dtype == ("bfloat16" if is_gguf else "q8_0"):
        form = "a .gguf file" if is_gguf else "a folder"
        raise UsageError(f"--dtype {dtype} is no type of {form}; the nearest is float16")
    check_absent(out)
    folder = resolve(source)
    if is_gguf:
        from owl2.checkpoint.gguf_write import write_gguf

        written = write_gguf(folder, out, dtype or "float16")  # type: ignore[arg-type]
        print(
            f"{out}: {written.num_tensors} tensors of the text path, {written.num_bytes / 1e9:.3f} GB; "
            f"{written.left_out} of images are left out, so llama.cpp answers text alone"
        )
        return
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

"""`owl2 init`: a new mPLUG-Owl2 of a pretrained vision encoder and a pretrained language model.

The folder it writes is what stage 1 of the training starts from. Packages are imported when the command runs,
so that `owl2 --help` does not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from owl2.cli.arguments import run_function

if TYPE_CHECKING:
    from owl2.checkpoint import Assembled


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 init`."""
    run_function(init, arguments, command="init", positionals=False)


def init(
    vision: Path,
    language: Path,
    out: Path,
    *,
    queries: int = 64,
    abstractor_layers: int = 6,
    image_size: int | None = None,
    vision_layers: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    """Make a new model of pretrained parts and write its checkpoint folder.

    Args:
        vision: CLIP or DINOv2 folder in the Hugging Face layout, or an .onnx file with a DINOv2 inside.
        language: LLaMA-family folder in the Hugging Face layout, or a .gguf file.
        out: the folder to write; must not exist.
        queries: visual tokens an image, without the end-of-image vector.
        abstractor_layers: layers of the visual abstractor.
        image_size: side in pixels; default: the encoder's own. For another, positions are interpolated.
        vision_layers: keep only this many of the encoder's layers, from the input.
        dtype: type of the written weights: float32, bfloat16 or float16.
        seed: for the abstractor, the only part that is drawn.
    """
    from owl2.checkpoint import CheckpointError, assemble, check_absent

    try:
        check_absent(out)
        made = assemble(
            vision=vision,
            language=language,
            queries=queries,
            abstractor_layers=abstractor_layers,
            image_size=image_size,
            vision_layers=vision_layers,
            dtype=dtype,
            seed=seed,
        )
        made.save(out)
    except CheckpointError as error:
        print(f"owl2 init: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    _print_origins(made, out)


def _print_origins(made: Assembled, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    table = Table("part", "from", "parameters", title=f"{out}", title_justify="left")
    table.columns[1].overflow = "fold"
    table.columns[2].justify = "right"
    for part, origin, count in made.origins:
        table.add_row(part, origin, f"{count:,}")
    table.add_section()
    table.add_row("all", "", f"{sum(count for *_, count in made.origins):,}")
    table.add_row("tokenizer", ", ".join(sorted(made.tokenizer_files)) or "none: copy its files yourself", "")
    console.print(table)
    for origin, names in made.unused.items():
        if names:
            print(f"Not used of {origin}: {len(names)} tensors, such as {names[0]}.")
    print(f"Next: owl2 train CONFIG with this folder as the model, or owl2 chat {out} (it is untrained).")

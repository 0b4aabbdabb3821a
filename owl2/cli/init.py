"""`owl2 init`: a new mPLUG-Owl2 from a pretrained vision encoder and a pretrained language model.

Stage 1 of the training starts from the folder that it writes.
"""

from pathlib import Path
from typing import Literal

from owl2.cli.values import Count, Seed


def init(
    *,
    vision: Path,
    language: Path,
    out: Path,
    queries: Count = 64,
    abstractor_layers: Count = 6,
    image_size: Count | None = None,
    vision_layers: Count | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: Seed = 0,
) -> None:
    """Make a new model from pretrained parts and write its checkpoint folder.

    Args:
        vision: CLIP or DINOv2 folder in the Hugging Face layout, or an .onnx file with a DINOv2.
        language: LLaMA-family folder in the Hugging Face layout, or a .gguf file.
        out: folder to write; it must not exist.
        queries: visual tokens per image, not counting the end-of-image vector.
        abstractor_layers: layers of the visual abstractor.
        image_size: side in pixels; default: the encoder's own. Positions are interpolated for another.
        vision_layers: number of the encoder's layers to keep, from the input; default: all.
        dtype: type of the written weights.
        seed: seed of the abstractor's weights, the only ones that are initialised.
    """
    from rich.console import Console
    from rich.table import Table

    from owl2.checkpoint import assemble, check_absent

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
    table = Table("part", "from", "parameters", title=f"{out}", title_justify="left")
    table.columns[1].overflow = "fold"
    table.columns[2].justify = "right"
    for part, origin, count in made.origins:
        table.add_row(part, origin, f"{count:,}")
    table.add_section()
    table.add_row("all", "", f"{sum(count for *_, count in made.origins):,}")
    table.add_row("tokenizer", ", ".join(sorted(made.tokenizer_files)) or "none: copy its files yourself", "")
    Console(soft_wrap=True).print(table)
    for origin, names in made.unused.items():
        if names:
            print(f"Not used from {origin}: {len(names)} tensors, such as {names[0]}.")
    print(f"Next: owl2 train CONFIG with this folder as the model, or owl2 chat {out} (it is untrained).")

"""The error of this package, and the report of tensors that do not fit a model.

A checkpoint that does not fit differs in names or shapes; the message counts each kind, shows the first few
with what was expected and what was found, and ends with what to do next.
"""

from collections.abc import Mapping, Sequence

from owl2.errors import Owl2Error

SHOWN = 5
"""Number of names of each kind that a message shows; the rest are counted."""

POSITION_TABLE = "vision_model.embeddings.position_embedding"

Shape = tuple[int, ...]


class CheckpointError(Owl2Error, ValueError):
    """A folder or file that cannot be read or written as a checkpoint."""


def check_fit(expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Compare the names and shapes that a model expects with those found.

    Raises:
        CheckpointError: with every kind of difference counted and the first five of each named.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    wrong = [name for name in expected if name in found and tuple(expected[name]) != tuple(found[name])]
    if not (missing or unexpected or wrong):
        return
    lines = [f"{where} does not fit the model that its config describes:"]
    lines += _listed("missing", missing, [_shape(expected[name]) for name in missing])
    lines += _listed("unexpected", unexpected, [_shape(found[name]) for name in unexpected])
    lines += _listed(
        "of another shape",
        wrong,
        [f"expected {_shape(expected[name])}, found {_shape(found[name])}" for name in wrong],
    )
    for name in wrong:
        if name.endswith(POSITION_TABLE):
            lines.append(_position_hint(expected[name], found[name]))
    raise CheckpointError("\n".join(lines))


def first_few(names: Sequence[str]) -> str:
    """Return the first five names and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def gigabytes(num_bytes: float) -> str:
    """Return a readable size, such as `16.40 GB` or `3.1 MB`."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _listed(kind: str, names: Sequence[str], details: Sequence[str]) -> list[str]:
    if not names:
        return []
    rows = [f"    {name}: {detail}" for name, detail in zip(names[:SHOWN], details[:SHOWN], strict=True)]
    if len(names) > SHOWN:
        rows.append(f"    and {len(names) - SHOWN} more")
    return [f"  {len(names)} {kind}:", *rows]


def _shape(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _position_hint(expected: Shape, found: Shape) -> str:
    """Explain the most common wrong shape: a position table made for another resolution."""

    def side(shape: Shape) -> int:
        return int((shape[1] if len(shape) == 3 else 0) ** 0.5)

    return (
        f"  The position table was made for {side(found)} x {side(found)} patches and image_size in "
        f"config.json for {side(expected)} x {side(expected)}. Set visual_config.visual_model.image_size to "
        f"{side(found)} x the patch size, the size that the table was made for; other image sizes are "
        "interpolated."
    )

"""The page of `owl2 data inspect`: one HTML file without scripts or outside files, light and dark.

Lengths as a histogram, what could not be used and why, and samples as the model sees them: the images at
its size, the text cut into its tokens, and what is learned from on a coloured ground.
"""

import io
from collections import Counter
from html import escape

from PIL import Image

from owl2.data.inspect.inspection import Inspection, Piece, Shown
from owl2.page import document, embedded_image

STYLE = """
:root { --line: #e5e3dd; --learned: #c9ece4; --edge: #8fcfc1; --chip: #efede8; }
@media (prefers-color-scheme: dark) { :root { --line: #2f333b; --learned: #134e48; --edge: #2b7f74;
  --chip: #2a2e36; } }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 96px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 20px; }
h2 { font-size: 20px; margin: 52px 0 4px; } h2 + p { color: var(--soft); margin: 0 0 16px; max-width: 48em; }
.facts { display: flex; flex-wrap: wrap; gap: 14px 40px; }
.facts b { display: block; font-size: 22px; letter-spacing: -0.01em; line-height: 1.3; }
.facts span { color: var(--soft); font-size: 14px; }
.card { padding: 18px 22px; }
.plot { padding: 22px 22px 12px; } .bars { display: flex; align-items: flex-end; gap: 3px; height: 150px; }
.bars i { flex: 1; background: var(--accent); border-radius: 3px 3px 0 0; min-height: 1px; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 13px;
  border-top: 1px solid var(--line); padding-top: 6px; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-size: 15px; } td, th { text-align: left;
  padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; font-size: 14px; } tr:last-child td { border: 0; }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--wrong); }
.sample { display: grid; grid-template-columns: 260px 1fr; gap: 4px 24px; margin: 0 0 18px; }
.sample.alone { grid-template-columns: 1fr; } .sample header { grid-column: 1 / -1; font-size: 13.5px;
  color: var(--soft); overflow-wrap: anywhere; padding-bottom: 6px; }
.sample img { display: block; width: 100%; border-radius: 8px; margin: 0 0 8px; image-rendering: auto; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 15.5px; line-height: 1.9; }
.text span { border-right: 1px dotted var(--soft); } .text .l { background: var(--learned);
  border-right-color: var(--edge); padding: 2px 0; }
.bytes .text span { border-right: 0; }
.chip { background: var(--chip); border-radius: 6px; padding: 2px 8px; font-size: 13px; color: var(--soft); }
.end { border: 1px solid var(--edge) !important; border-radius: 5px; padding: 0 5px !important;
  font-size: 12.5px; }
@media (max-width: 700px) { .sample { grid-template-columns: 1fr; } }
"""


def render_page(found: Inspection) -> str:
    """Return the whole document."""
    heading = f"<h1>{escape(found.name)}</h1>"
    parts = [heading, _facts(found), _histogram(found), _broken(found), _samples(found)]
    return document(found.name, STYLE, "\n".join(parts))


def facts(found: Inspection) -> list[tuple[str, str]]:
    """(figure, what it is), the same on the page and in the terminal."""
    total = sum(found.lengths)
    rows = [
        (f"{found.num_samples:,}", "samples"),
        (f"{found.num_opened:,}", "of them opened"),
        (f"{len(found.bad):,}", "broken"),
        (f"{found.quantile(0.5):,}", f"{found.unit}, median"),
        (f"{found.quantile(0.95):,}", f"{found.unit}, 95 % have fewer"),
        (f"{max(found.lengths, default=0):,}", f"{found.unit}, longest"),
        (f"{found.num_targets / max(1, total):.1%}", "learned from"),
        (f"{found.num_visual / max(1, total):.1%}", "visual"),
        (f"{found.num_cut:,}", f"cut at {found.max_tokens:,}"),
    ]
    if found.num_incomplete:
        rows.insert(1, (f"{found.num_incomplete:,}", "keys without image or caption"))
    if found.lost:
        rows.insert(1, (f"{found.lost_share:.1%}", f"lost, in {len(found.lost):,} damaged file(s)"))
    return rows


def reasons(found: Inspection) -> list[tuple[int, str, str]]:
    """(number, kind of fault, one example): files that are lost, then broken samples, most frequent first."""
    kinds = Counter(bad["kind"] for bad in found.bad)
    examples = {bad["kind"]: bad for bad in reversed(found.bad)}
    return [(1, "file is left out, whole or in part", f"{file}: {reason}") for file, reason in found.lost] + [
        (count, kind, f"{examples[kind]['key']}: {examples[kind]['reason']}")
        for kind, count in kinds.most_common()
    ]


def _facts(found: Inspection) -> str:
    cells = "".join(f"<div><b>{value}</b><span>{escape(what)}</span></div>" for value, what in facts(found))
    return f'<div class="facts">{cells}</div>'


def _histogram(found: Inspection) -> str:
    buckets = found.histogram()
    if not buckets:
        return ""
    top = max(count for _, _, count in buckets)
    bars = "".join(
        f'<i style="height: {100 * count / top:.1f}%" title="{first:,} to {last:,}: {count:,} samples"></i>'
        for first, last, count in buckets
    )
    shapes = ", ".join(f"{count:,} {shape}" for shape, count in found.shapes.most_common())
    return (
        f"<section>\n<h2>Length in {found.unit}</h2>\n"
        f"<p>{escape(shapes)}. The tallest bar stands for {top:,} samples.</p>\n"
        f'<div class="card plot"><div class="bars">{bars}</div>\n'
        f'<div class="axis"><span>{buckets[0][0]:,}</span><span>{buckets[-1][1]:,}</span></div></div>'
        "\n</section>"
    )


def _broken(found: Inspection) -> str:
    if not reasons(found):
        return ""
    rows = "".join(
        f'<tr><td class="n">{count:,}</td><td>{escape(kind)}</td><td>{escape(example)}</td></tr>'
        for count, kind, example in reasons(found)
    )
    return (
        "<section>\n<h2>Broken</h2>\n<p>Training leaves these out, counts them and names them in "
        "bad_samples.jsonl.</p>\n"
        f'<div class="card"><table><tr><th></th><th>kind</th><th>the first</th></tr>{rows}</table></div>'
        "\n</section>"
    )


def _samples(found: Inspection) -> str:
    is_stand_in = found.unit == "bytes"
    explanation = "Drawn by lot. What is learned from has a coloured ground, an end token a frame; " + (
        "no model was given, so lengths are bytes." if is_stand_in else "dotted lines part the tokens."
    )
    kind = ' class="bytes"' if is_stand_in else ""
    cards = "\n".join(_sample(shown) for shown in found.shown)
    return (
        f"<section{kind}>\n<h2>As the model sees them</h2>\n<p>{escape(explanation)}</p>\n{cards}\n</section>"
    )


def _sample(shown: Shown) -> str:
    images = "".join(_image(image) for image in shown.images)
    column = f"<div>{images}</div>" if images else ""
    text = "".join(_piece(piece) for piece in shown.pieces)
    counts = f"{shown.num_tokens:,} in all, {shown.num_targets:,} learned from"
    return (
        f'<article class="card sample{"" if images else " alone"}">'
        f'<header>{escape(shown.key)} · {counts}</header>{column}<div class="text">{text}</div></article>'
    )


def _piece(piece: Piece) -> str:
    if piece.image is not None:
        return f'<span class="chip">image {piece.image + 1}</span>'
    if piece.is_end:
        return f'<span class="{"l end" if piece.is_target else "end"}">end</span>'
    kind = ' class="l"' if piece.is_target else ""
    return f"<span{kind}>{escape(piece.text)}</span>"


def _image(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return embedded_image(file.getvalue(), alt="what the vision encoder gets")

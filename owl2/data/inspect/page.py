"""The page of `owl2 data inspect`: lengths, broken samples, and samples as the model sees them.

Images are shown at the model's size, text is cut into its tokens, and what the model learns from has a
coloured ground.
"""

from collections import Counter

from owl2.data.inspect.inspection import Inspection
from owl2.pages.page import render


def render_page(found: Inspection) -> str:
    """Return the whole document."""
    return render(
        "inspect.html",
        title=found.name,
        found=found,
        facts=facts(found),
        buckets=found.histogram(),
        shapes=", ".join(f"{count:,} {shape}" for shape, count in found.shapes.most_common()),
        reasons=[(f"{count:,}", kind, example) for count, kind, example in reasons(found)],
    )


def facts(found: Inspection) -> list[tuple[str, str]]:
    """(figure, what it is of), the same on the page and in the terminal."""
    total = sum(found.lengths)
    rows = [
        (f"{found.num_samples:,}", "samples"),
        (f"{found.num_opened:,}", "of them opened"),
        (f"{len(found.bad):,}", "broken"),
        (f"{found.quantile(0.5):,}", f"{found.unit}, median"),
        (f"{found.quantile(0.95):,}", f"{found.unit}, 95 % have fewer"),
        (f"{max(found.lengths, default=0):,}", f"{found.unit}, longest"),
        (f"{found.num_targets / max(1, total):.1%}", "targets"),
        (f"{found.num_visual / max(1, total):.1%}", "visual"),
        (f"{found.num_cut:,}", f"cut at {found.max_tokens:,}"),
    ]
    if found.num_blank:
        rows.insert(3, (f"{found.num_blank:,}", "questions with a blank answer, left out"))
    if found.num_incomplete:
        rows.insert(3, (f"{found.num_incomplete:,}", "keys without image or caption"))
    if found.lost:
        rows.insert(3, (f"{found.lost_share:.1%}", f"lost, in {len(found.lost):,} damaged file(s)"))
    return rows


def reasons(found: Inspection) -> list[tuple[int, str, str]]:
    """(number, kind of fault, one example): lost files, then broken samples, the most frequent kind first."""
    kinds = Counter(bad["kind"] for bad in found.bad)
    examples = {bad["kind"]: bad for bad in reversed(found.bad)}
    return [(1, "file is left out, whole or in part", f"{file}: {reason}") for file, reason in found.lost] + [
        (count, kind, f"{examples[kind]['key']}: {examples[kind]['reason']}")
        for kind, count in kinds.most_common()
    ]

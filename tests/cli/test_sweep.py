"""Several runs: a grid of settings, their comparison, and what a traced run leaves."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owl2.__main__ import main
from owl2.cli.train import read_config
from owl2.train.metrics import read_metrics
from owl2.train.sweep import points_of
from tests.cli.test_commands import ROOT


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def test_a_grid_is_every_combination_with_a_name_that_a_folder_can_have() -> None:
    points = points_of({"optim.lr": ["1e-3", "3e-4"], "rules": [[{"match": "*"}], [{"match": "a/b"}]]})
    assert [point.settings[0][1] for point in points] == ["1e-3", "1e-3", "3e-4", "3e-4"]
    names = [point.name for point in points]
    assert len(set(names)) == 4
    assert not any("/" in name for name in names)
    same = points_of({"data.seed": ["1"], "lora.seed": ["1"]})
    assert same[0].name == "data.seed=1,lora.seed=1"


@pytest.mark.slow
def test_a_sweep_runs_every_combination_goes_on_and_counts_a_run_that_fails(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (desk / "grid.yaml").write_text('image_size: [56, 57]\noptim.lr: ["1e-3"]\n')
    words = ["train", "stage.yaml", "--run", "grid", "--steps", "3", "--sweep", "grid.yaml"]
    with pytest.raises(SystemExit, match="1"):
        main(words)
    out, err = capsys.readouterr()
    assert "[1/2] image_size=56,lr=1e-3: loss " in out
    assert "1 of 2 runs failed (image_size=57,lr=1e-3: exit code 1); grid/NAME.log says why" in err
    assert "57" in (desk / "grid/image_size=57,lr=1e-3.log").read_text()
    good, bad = json.loads((desk / "grid/sweep.json").read_text())
    assert (good["steps"], good["exit_code"], good["is_finished"]) == (3, 0, True)
    assert bad["exit_code"] == 1
    main(["train", "stage.yaml", "--run", "alone", "--steps", "3", "--image_size", "56"])
    assert losses(desk / "grid/image_size=56,lr=1e-3") == losses(desk / "alone")
    (desk / "grid.yaml").write_text('image_size: [56]\noptim.lr: ["1e-3"]\n')
    capsys.readouterr()
    main(words)
    assert "finished before" in capsys.readouterr().out
    assert read_config(["grid/image_size=56,lr=1e-3.yaml"]).image_size == 56


def test_a_sweep_names_all_that_is_wrong_before_its_first_run(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    words = ["train", "stage.yaml", "--run", "grid", "--sweep", "grid.yaml"]
    for grid, messages in {
        "optim.learning_rate: [1]\nsteps: 5\nrun: [a]": [
            "'optim.lr'",
            "steps must be a list",
            "no setting run",
        ],
        "optim.lr: [0.1, -1]\nsteps: [0, 5]": ["lr=-1,steps=5: optim.lr = -1.0", "lr=0.1,steps=0: steps = 0"],
        "optim.lr: [0.1, fast]": ["lr=fast: --optim.lr must be a number"],
    }.items():
        (desk / "grid.yaml").write_text(grid)
        with pytest.raises(SystemExit, match="1"):
            main(words)
        said = capsys.readouterr().err
        assert all(message in said for message in messages), said
    assert not (desk / "grid").exists()


@pytest.mark.slow
def test_a_sweep_that_is_stopped_stops_its_run_and_goes_on(desk: Path) -> None:
    (desk / "grid.yaml").write_text("data.seed: [1, 2]\n")
    words = ["-m", "owl2", "train", "stage.yaml", "--run", "grid", "--steps", "300", "--sweep", "grid.yaml"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *words], cwd=desk, env=environment) as sweep:
        while len(read_metrics(desk / "grid/seed=1")) < 2:
            assert sweep.poll() is None
            time.sleep(0.1)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(60) == 75
    done = len(losses(desk / "grid/seed=1"))
    assert done < 300
    words[words.index("300")] = str(done + 1)
    subprocess.run([sys.executable, *words], cwd=desk, env=environment, check=True)
    assert len(losses(desk / "grid/seed=1")) == len(losses(desk / "grid/seed=2")) == done + 1


def test_runs_are_compared_by_curves_settings_losses_and_speed(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    for name, lr in {"slow": "1e-4", "fast": "1e-3", "begun": "1e-2"}.items():
        main(["train", "stage.yaml", "--run", f"runs/{name}", "--steps", "4", f"--optim.lr={lr}", "--quiet"])
    (desk / "runs/begun/metrics.jsonl").unlink()
    capsys.readouterr()
    main(["report", "runs/slow", "runs/fast", "runs/begun", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["steps"] for row in found] == [4, 4, 0]
    assert found[0]["loss"] == losses(desk / "runs/slow")[-1]
    assert found[2]["loss"] is None
    page = (desk / "runs/comparison.html").read_text()
    text = re.sub(r"<[^>]*>", " ", page)
    for shown in ("optim.lr", "0.0001", "0.001", "slow", "fast", f"{found[0]['loss']:.4f}", "0 of 4"):
        assert shown in text, shown
    assert "data.seed" not in text, "what is the same is left out"
    assert page.count("<svg") == 3
    with pytest.raises(SystemExit, match="1"):
        main(["report", "runs/slow", "runs/slow"])
    assert "two different runs" in capsys.readouterr().err


def test_a_traced_run_has_the_losses_of_any_other_and_leaves_a_trace_and_a_table(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    main(["train", "stage.yaml", "--run", "plain", "--steps", "6", "--quiet"])
    assert capsys.readouterr().out == "plain/checkpoint\n"
    main(["train", "stage.yaml", "--run", "traced", "--steps", "6", "--profile", "1", "--json"])
    out = capsys.readouterr().out
    assert "profile of 1 steps: traced/profile: operations.txt, trace.json.gz" in out
    assert json.loads(out[out.index("{") :])["checkpoint"] == "traced/checkpoint"
    assert losses(desk / "traced") == losses(desk / "plain")
    assert "aten::" in (desk / "traced/profile/operations.txt").read_text()
    main(["train", "stage.yaml", "--run", "short", "--steps", "2", "--profile", "5"])
    assert "--profile 5 traced nothing: it begins after 4 steps" in capsys.readouterr().out

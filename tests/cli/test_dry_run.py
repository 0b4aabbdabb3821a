"""`owl2 train --dry_run`: all that is wrong with a stage at once, and samples of its sources."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from owl2.__main__ import main


def write(desk: Path, *words: str, **changes: Any) -> str:
    """The stage of the desk with some keys replaced."""
    stage = {**yaml.safe_load((desk / "stage.yaml").read_text()), **changes}
    (desk / "mine.yaml").write_text(yaml.safe_dump(stage))
    return str(desk / "mine.yaml")


def errors_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> list[str]:
    """The numbered errors with which `owl2 train` ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words])
    err = capsys.readouterr().err
    assert stopped.value.code == code, err
    first, *lines = err.splitlines()
    lines = [line for line in lines if re.match(r"  \d+\. ", line)]
    assert first.startswith(f"owl2 train: {len(lines)} error"), err
    assert [int(line.partition(".")[0]) for line in lines] == [*range(1, len(lines) + 1)]
    return [line.partition(". ")[2] for line in lines]


def test_eight_faults_of_different_kinds_are_named_together(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    sources = [{"name": "talk", "path": "talk.jsonl"}, {"name": "gone", "path": "gone.jsonl"}]
    stage = write(
        desk,
        run="file/run",
        optim={"learning_rate": 1e-3, "warmup_steps": 1},
        data={"max_tokens": 200, "sources": sources, "max_bad_fraction": 2},
        rules=[{"match": "model.vison.*"}, {"match": "*"}],
        log_every="often",
        micro_batch_size=3,
        device="cuda:77",
    )
    found = errors_of([stage, "--dry-run"], capsys)
    for name, fault in {
        "typo": "there is no setting optim.learning_rate; the nearest valid key is 'lr' (optim.lr)",
        "type": "log_every must be a whole number, not 'often'",
        "bounds": "data.max_bad_fraction = 2.0 must be at most 1",
        "batch": "micro_batch_size 3 x accumulation 1 x 1 rank(s) = 3, but global_batch_size is 2",
        "device": "cuda:77",
        "run": "run file/run cannot be a folder that this run writes to",
        "rule": "rule 'model.vison.*' decides for no parameter",
        "source": "gone: gone.jsonl does not exist",
    }.items():
        assert sum(fault in line for line in found) == 1, (name, found)
    assert len(found) == 8, found
    assert not (desk / "run").exists()
    errors_of([write(desk, run="some/where/run", model="nothing"), "--dry_run"], capsys)
    assert not (desk / "some").exists(), "nothing is left behind"


def test_other_faults_are_named_together_too_and_consequences_are_not(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    blind = [{"id": str(n), "image": f"{n}.png", "conversations": []} for n in range(40)]
    (desk / "blind.jsonl").write_text("".join(json.dumps(row) + "\n" for row in blind))
    stage = write(
        desk,
        data={"max_tokens": 10**6, "sources": [{"name": "blind", "path": "blind.jsonl"}]},
        rules=[{"match": "a.*"}, {"match": "b.*"}, {"match": "*"}],
        steps=0,
        trackers=["tensorboard", "tensorboard"],
        validation={"sources": [{"name": "held", "path": "empty"}]},
    )
    found = errors_of([stage, "--dry_run", "--optim.eps", "tiny", "--keep_every", "3"], capsys)
    wanted = ("--optim.eps must", "steps = 0", "keep_every 3", "trackers", "exceeds", "'a.*'", "'b.*'")
    wanted = (*wanted, "none of 32 samples", "empty")
    assert all(sum(fault in line for line in found) == 1 for fault in wanted), found
    assert len(found) == len(wanted), found
    found = errors_of([write(desk, model="nothing", dtype="float8"), "--dry_run"], capsys)
    assert len(found) == 2, "neither rules nor samples nor memory are checked without a model"
    assert errors_of([write(desk, steps=None, data=None, model=None), "--dry_run"], capsys)


def test_a_stage_without_errors_is_summed_up_with_samples_as_the_model_sees_them(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    main(["train", "stage.yaml", "--dry_run", "--run", "runs/new"])
    shown = capsys.readouterr().out
    assert "20 steps of 2 samples on 1 process(es)" in shown
    assert "memory: " in shown
    assert "disk: " in shown
    assert shown.endswith("no errors; nothing was trained\n")
    page = (desk / "runs/new/dry_run.html").read_text()
    assert "talk:0" in page
    assert 'src="data:image/jpeg' in page
    assert {path.name for path in (desk / "runs/new").iterdir()} == {"dry_run.html"}
    main(["train", "stage.yaml", "--run", "runs/new", "--steps", "2"])
    with pytest.raises(SystemExit, match="1"):
        main(["train", "stage.yaml", "--dry_run", "--run", "runs/new", "--steps", "2", "--optim.lr", "1e-4"])
    assert "is finished, and these" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        main(["train", "stage.yaml", "--dry_run", "--run", "runs/new"])
    assert "has no state to continue from" in capsys.readouterr().err


def test_a_run_whose_data_changed_after_its_state_is_told_so(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    rows = (desk / "talk.jsonl").read_text().splitlines(keepends=True)
    (desk / "mine.jsonl").write_text("".join(rows))
    sources = [{"name": "talk", "path": "mine.jsonl"}]
    stage = write(desk, data={"max_tokens": 200, "sources": sources}, run="begun", save_every=1, steps=3)
    main(["train", stage])
    (desk / "mine.jsonl").write_text("".join(rows[::-1]))
    (found,) = errors_of([stage, "--dry_run", "--steps", "5"], capsys)
    assert "step-0000003 belongs to other samples or another order of samples" in found
    main(["train", stage, "--dry_run", "--steps", "5", "--data.accept_edits", "true"])
    assert capsys.readouterr().out.endswith("no errors; nothing was trained\n")


def test_packs_epochs_and_a_held_out_share_are_checked_with_the_rest(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    stage = write(desk, steps=0, epochs=2, global_batch_size=4, micro_batch_size=1, dtype="bfloat16")
    main(["train", stage, "--dry_run", "--data.pack_tokens", "400", "--data.validation_share", "0.25"])
    out = capsys.readouterr().out
    assert "3 steps of 4 samples" in out, "six of the eight samples, twice"
    words = [stage, "--dry_run", "--accumulation", "4"]
    (found,) = errors_of([*words, "--data.validation_share", "0.01"], capsys)
    assert "less than one" in found
    (found,) = errors_of([*words, "--optim.warmup_steps", "9"], capsys)
    assert "warmup_steps 9" in found


def test_a_stage_that_is_run_names_all_errors_of_its_configuration(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    stage = write(desk, lr=1e-3, stps=4, global_batch_size=3, dtype="float8", log_every=0)
    found = errors_of([stage, "--skip_nonfinite", "-1"], capsys)
    assert len(found) == 6, found
    assert "there is no setting lr; the nearest valid key is 'optim.lr'" in "".join(found)
    assert len(errors_of([stage, "--stps", "5", "--optim.learning_rate", "1"], capsys, code=2)) == 2

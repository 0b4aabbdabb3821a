"""`run.json` says how a folder was made, well enough to make the same again, and has no secrets."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from owl2.__main__ import main
from owl2.errors import Owl2Error
from owl2.provenance import KILLED, ProvenanceError, read_record, recorded
from owl2.train.metrics import read_metrics


def record_of(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    assert record is not None
    return record


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run)]


def test_the_record_of_a_run_starts_the_same_run_again_with_equal_losses(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    words = ["--steps=3", "--optim.lr", "3e-3", "--data.seed=7", "--run=first", "--optim.max_grad_norm=.inf"]
    main(["train", "stage.yaml", *words])
    (desk / "stage.yaml").unlink()  # the record is enough
    main(["train", "first/run.json", "--run", "second"])
    assert losses(desk / "second") == losses(desk / "first")
    assert len(losses(desk / "first")) == 3
    first, second = record_of(desk / "first"), record_of(desk / "second")
    assert first["fingerprints"] == second["fingerprints"]
    assert first["seeds"] == {"data.seed": 7}
    assert {**first["config"], "run": "second"} == second["config"]
    (attempt,) = first["attempts"]
    assert (attempt["exit"], attempt["processes"], attempt["first_step"]) == ("finished", 1, 0)
    assert {"torch", "numpy"} <= attempt["packages"].keys()
    card = (desk / "first/checkpoint/README.md").read_text()
    assert first["fingerprints"]["model"] in card
    assert attempt["host"] not in card
    assert yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])["data"]["seed"] == 7
    page = (desk / "first/report.html").read_text()
    assert "How it was made" in page
    assert attempt["host"] in page


def test_each_start_is_an_attempt_with_its_end_and_a_killed_one_is_told_as_such(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    words = ["train", "stage.yaml", "--run=new", "--save_every=1"]
    with pytest.raises(SystemExit):
        main([*words, "--steps=2", "--model", "nothing"])
    assert not (desk / "new").exists(), "a start that fails before anything is known leaves nothing"
    main([*words, "--steps=2"])
    main([*words, "--steps=2"])  # is finished: no attempt
    path = desk / "new/run.json"
    record = json.loads(path.read_text())
    del record["attempts"][0]["exit"], record["attempts"][0]["ended"]
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main([*words, "--steps=4", "--data.sources", "[{name: talk, path: gone.jsonl}]"])
    main([*words, "--steps=4"])
    attempts = record_of(desk / "new")["attempts"]
    assert [each["exit"] for each in attempts][::2] == [KILLED, "finished"]
    assert attempts[1]["exit"].startswith("error: talk: gone.jsonl does not exist")
    assert attempts[2]["first_step"] == 2
    path.write_text("[]")
    with pytest.raises(SystemExit, match="1"):
        main([*words, "--steps=5"])


def test_a_record_has_the_commit_of_the_working_directory_and_whether_it_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    commits = []
    for change in (
        "true",
        "git init -q && echo a > file && git add file && git -c user.name=a -c user.email=a@b commit -qm a",
        "echo untracked > other",
        "echo b > file",
    ):
        subprocess.run(["sh", "-c", change], check=True)
        with recorded(tmp_path, {}) as record:
            record.update()
        commits.append(record_of(tmp_path)["attempts"][-1]["git"])
    assert commits[0] is None
    assert [commit["clean"] for commit in commits[1:]] == [True, True, False]
    assert len(commits[1]["commit"]) == 40


def test_a_record_has_no_keys_and_no_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", " sk-of-the-environment\n")
    line = "owl2 eval run --api_key sk-typed --hf-token=hf_typed --max_new_tokens 5"
    line += " --endpoint https://me:password@host/v1 --data s3://b/x?X-Amz-Signature=abc&size=3"
    monkeypatch.setattr("sys.argv", shlex.split(line))

    def fail() -> None:
        with recorded(tmp_path, {"config": {"max_tokens": 5}}) as record:
            record.update()
            raise Owl2Error("refused: sk-of-the-environment")

    with pytest.raises(Owl2Error):
        fail()
    text = (tmp_path / "run.json").read_text()
    for secret in ("sk-", "hf_typed", "password", "abc"):
        assert secret not in text
    assert record_of(tmp_path)["attempts"][0]["exit"] == "error: refused: ***"
    assert '"--max_new_tokens",\n    "5"' in text
    assert "https://***@host/v1" in text
    assert "Signature=***&size=3" in text


def test_an_evaluation_has_a_record_too_and_its_report_shows_it(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    words = ["--tasks", "vqav2", "--template", "owl2-2024", "--data", "bench"]
    main(["eval", "run", "checkpoint", *words, "--out", "new"])
    record = record_of(desk / "new")
    assert record["config"]["template"] == "owl2-2024"
    assert record["fingerprints"]["data"].keys() == {"vqav2"}
    assert record["fingerprints"]["model"]["weights"]
    assert record["attempts"][0]["exit"] == "finished"
    main(["eval", "report", "new"])
    assert record["attempts"][0]["started"] in (desk / "new/report.html").read_text()


def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}", '{"attempts": [1]}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ProvenanceError, match=r"run\.json"):
            read_record(tmp_path)

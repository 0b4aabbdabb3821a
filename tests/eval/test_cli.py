"""`owl2 eval`: one command for all, a table of what is missing, mistakes in one line."""

import json
from pathlib import Path

import pytest

from bench.eval import main as bench_main
from owl2.__main__ import main
from owl2.eval.task import find_task
from tests.eval.server import served
from tests.eval.small import NUM_QUESTIONS, lines, write_json


def test_a_run_asks_scores_and_reports_and_the_other_commands_read_its_folder(
    checkpoint: Path, vqa_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    places = ["--data", str(vqa_data), "--out", str(out)]
    main(["eval", "run", str(checkpoint), "--tasks", "vqav2,gqa", *places, "--batch-tokens", "4000"])
    shown, progress = capsys.readouterr()
    assert "gqa" in shown
    assert "cs.stanford.edu" in shown, "a missing benchmark is a line that says where to get it"
    assert "VQAv2 val" in shown
    assert "79.40" in shown
    assert f"{NUM_QUESTIONS} answers" in progress
    assert len(lines(out)) == NUM_QUESTIONS
    assert {path.name for path in out.glob("report.*")} == {
        f"report.{s}" for s in ("md", "csv", "json", "html")
    }
    main(["eval", "score", str(out)])
    assert json.loads((out / "scores.json").read_text())["tasks"][0]["n"] == NUM_QUESTIONS
    main(["eval", "export", str(out)])
    assert (out / "submissions" / "vqav2.json").exists()
    capsys.readouterr()
    main(["eval", "compare", str(out), str(out)])
    assert "+0.00" in capsys.readouterr().out


def test_data_lists_every_file_of_every_benchmark(vqa_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from owl2.eval.task import all_tasks

    main(["eval", "data", "--data", str(vqa_data)])
    shown = capsys.readouterr().out
    for name, task in all_tasks().items():
        assert name in shown
        assert all(file.path in shown for file in task.files)
    assert "present" in shown
    assert "missing" in shown


def test_a_required_file_is_not_missing_where_another_stands_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    required, *_ = (file for file in find_task("gqa").files if file.path.endswith("questions.json"))
    (other,) = (file for file in find_task("gqa").files if file.instead_of == required.path)
    asked = ["eval", "data", "--data", str(tmp_path), "--tasks", "gqa"]
    main(asked)
    assert state_of(required.path, capsys.readouterr().out) == "missing"
    (tmp_path / other.path).parent.mkdir(parents=True)
    (tmp_path / other.path).touch()
    main(asked)
    shown = capsys.readouterr().out
    assert state_of(required.path, shown) == "replaced"
    assert state_of(other.path, shown) == "present"


def state_of(path: str, table: str) -> str:
    """What the table of files says of one."""
    (cells,) = (
        cells for line in table.splitlines() if path in (cells := [c.strip() for c in line.split("│")])
    )
    return cells[cells.index(path) + 1]


def test_a_server_in_place_of_a_checkpoint(
    vqa_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(lambda request: "yes") as script:
        words = ["--endpoint", script.url, "--model", "owl", "--limit", "4"]
        places = ["--data", str(vqa_data), "--out", str(tmp_path)]
        main(["eval", "run", "--tasks", "vqav2", *places, *words])
    assert {row["output"] for row in lines(tmp_path)} == {"yes"}
    assert {request["model"] for request in script.requests} == {"owl"}


def test_a_judge_is_asked_only_with_yes(
    vqa_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "mm-vet"
    (folder / "images").mkdir(parents=True)
    image = next((vqa_data / "coco" / "val2014").iterdir()).read_bytes()
    (folder / "images" / "v1_0.jpg").write_bytes(image)
    question = {"imagename": "v1_0.jpg", "question": "What?", "answer": "owl", "capability": ["rec"]}
    write_json(folder / "mm-vet.json", {"v1_0": question})
    with served(lambda request: "0.5") as script:
        server = ["--endpoint", script.url, "--model", "owl"]
        places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path)]
        main(["eval", "run", "--tasks", "mmvet", *places, *server])
        assert "a judge must grade it" in capsys.readouterr().out
        asked = len(script.requests)
        main(["eval", "judge", str(tmp_path), *server, "--price-in", "30", "--price-out", "60"])
        shown = capsys.readouterr().out
        assert "mmvet: 1 requests to owl (0 graded already), about 5" in shown
        assert "Nothing is spent yet" in shown
        assert len(script.requests) == asked
        main(["eval", "judge", str(tmp_path), *server, "--yes"])
    main(["eval", "report", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "50.00" in shown
    assert "owl-2026, 1 graded" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "{ck}", "--tasks", "vqa2", "--out", "{out}"], "nearest is 'vqav2'"),
        (["run", "{ck}", "--tasks", "vqav2", "--out", "{out}", "--template", "lava"], "nearest is 'llava15'"),
        (["run", "{ck}", "--tasks", "vqav2", "--out", "{out}", "--data", "{out}"], "has its files below"),
        (["run", "{bare}", "--tasks", "vqav2", "--out", "{out}"], "tokenizer"),
        (["score", "{out}"], "it is not what `owl2 eval run"),
        (["report", "{out}"], "it is not what"),
        (["compare", "{out}", "{out}"], "it is not what"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    words: list[str],
    message: str,
    checkpoint: Path,
    vqa_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in checkpoint.iterdir():
        if not file.name.startswith("tokenizer"):
            (bare / file.name).write_bytes(file.read_bytes())
    places = {"ck": str(checkpoint), "out": str(tmp_path / "out"), "bare": str(bare)}
    words = [word.format(**places) for word in words]
    if words[0] == "run" and "--data" not in words:
        words += ["--data", str(vqa_data)]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *words])
    err = capsys.readouterr().err
    assert stopped.value.code == 1
    assert err.startswith(f"owl2 eval {words[0]}: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "vqav2"], "give a checkpoint, or --endpoint"),
        (["checkpoint", "--tasks", "vqav2", "--endpoint", "http://localhost"], "and not both"),
        (["checkpoint", "--tasks", "vqav2", "--limit", "0"], "--limit 0 must be at least 1"),
        (["checkpoint", "--tasks", "vqav2", "--batch-size", "-3"], "--batch_size -3 must be at least 1"),
        (["checkpoint", "--tasks", "vqav2", "--batch_tokens=0"], "--batch_tokens 0 must be at least 1"),
    ],
)
def test_a_wrong_use_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "run", *words, "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert err.startswith("owl2 eval run: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "scores"])
    assert "no command 'scores'; the nearest is 'score'" in capsys.readouterr().err
    main(["eval", "--help"])
    assert "compare" in capsys.readouterr().out


def test_the_benchmark_prints_a_table_and_writes_its_figures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_main(str(checkpoint), questions=6, rounds=1, batch_size=4, out=tmp_path / "eval.json")
    record = json.loads((tmp_path / "eval.json").read_text())
    assert record["results"]["one at a time"]["speed_ratio"] == 1
    assert record["results"]["batches of 4"]["questions_per_s"] > 0
    assert record["per_image"] == 5
    assert "times as fast" in capsys.readouterr().out

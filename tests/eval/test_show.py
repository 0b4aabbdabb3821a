"""What a benchmark asks, in the terminal, on a page, and kept with the answers."""

import json
from pathlib import Path

import pytest

from owl2.__main__ import main
from owl2.eval.engines.local import OwlEngine
from owl2.eval.report import page
from owl2.eval.report.rows import Run
from owl2.eval.report.show import Shown
from owl2.eval.report.write import write_report
from owl2.eval.scoring.score import score_run
from owl2.eval.task import all_tasks, find_task
from tests.eval.small import Scripted, lines, read, run
from tests.eval.tasks.miniature import DATA, data_of
from tests.eval.tasks.miniature import prompt as shown_prompt
from tests.markup import check_that_text_stays_text


def plain(prompt: str) -> str:
    """Without what separates earlier answers."""
    return prompt.replace("</s>", "").replace("ASSISTANT: ", "ASSISTANT:")


@pytest.mark.parametrize("name", sorted(all_tasks()))
def test_every_benchmark_shows_its_prompt_with_images_reference_and_decoding(name: str) -> None:
    task = find_task(name)
    for template in task.templates:
        shown = Shown(task, data_of(name), template, 2)
        text = shown.text()
        assert f"template   {template}" in text
        assert task.templates[template].source in text
        items = {f"question {item.id}": item for item in task.load(data_of(name)).items}
        for card in shown.cards:
            item = items[card["place"]]
            if item.video is None:
                assert plain(card["facts"]["prompt"]) == plain(shown_prompt(task, item, template))
                assert len(card["images"]) == min(len(item.images), page.MAX_IMAGES)
            assert not card["error"]


def test_show_prints_sizes_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    words = [
        "eval",
        "show",
        "mme",
        "--data",
        str(DATA),
        "--template",
        "llava15",
        "--n",
        "3",
        "--out",
        str(out),
    ]
    main(words)
    shown = capsys.readouterr().out
    assert shown.count("\nquestion ") == 3
    assert "(96 x 64)" in shown
    assert "max_new_tokens 10" in shown
    assert out.read_text().count("<img") == 3
    assert "what is asked" in out.read_text()


def test_show_takes_own_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"question": f"Which is {n}?", "choices": ["x", "y"], "answer": 1} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["eval", "show", "--questions", str(file), "--n", "2"])
    shown = capsys.readouterr().out
    assert shown.count("A. x\n") == 2
    assert "reference  B" in shown


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["mmee"], 1, "nearest is 'mme'"),
        (["mme", "--data", "nowhere"], 1, "below nowhere; `owl2 eval data --data nowhere --tasks mme` says"),
        (["mme", "--template", "lava"], 1, "nearest is 'llava15'"),
        ([], 2, "give the name of a benchmark or --questions"),
        (["mme", "--questions", "own.jsonl"], 2, "not both"),
        (["mme", "--n", "0"], 2, "--n"),
    ],
    ids=str,
)
def test_show_says_what_is_wrong(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "show", *words])
    assert stopped.value.code == code
    assert message in capsys.readouterr().err


def test_answers_are_kept_with_the_prompt_that_the_model_got(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path, limit=3)
    task = find_task("vqav2")
    items = {item.id: item for item in task.load(vqa_data).items}
    for row in lines(tmp_path):
        assert row["prompt"] == shown_prompt(task, items[row["id"]])
        image = items[row["id"]].images[0].open()
        tokens = engine.owl.processor(text=[row["prompt"]], images=[[image]])["input_ids"]
        assert tokens.shape[1] == row["prompt_tokens"]
    html = write_report([Run("run", tmp_path, score_run(tmp_path), {})], tmp_path)["html"].read_text()
    assert "ASSISTANT:" in html


def test_a_server_is_asked_turns_and_a_folder_without_prompts_is_read(vqa_data: Path, tmp_path: Path) -> None:
    run(Scripted({}), vqa_data, tmp_path, limit=2)
    (path,) = (tmp_path / "predictions").glob("*.jsonl")
    assert all(row["prompt"].startswith("user: <|image|>") for row in lines(tmp_path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "prompt"}) + "\n" for row in rows)
    )
    assert {row.prompt for row in read(tmp_path).by_id.values()} == {""}
    assert score_run(tmp_path)


def test_no_text_of_the_page_becomes_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    from owl2.eval.report import show

    shown = Shown(find_task("gqa"), DATA)
    check_that_text_stays_text(show, lambda: shown.page(), monkeypatch)

"""One identity of an answer: whatever shapes answers keeps them apart, and the error says what differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import owl2
from owl2.eval.answers.predictions import PredictionError, tasks_of
from owl2.eval.engines.local import OwlEngine, identity_of
from owl2.eval.report.rows import Run
from owl2.eval.report.write import write_report
from owl2.eval.runner import plan_tasks, run_plans
from owl2.eval.scoring.score import score_run
from owl2.eval.task import find_task
from tests.eval.small import NUM_QUESTIONS, Scripted, outputs, read, run, write_json

Change = Callable[[Path], None]


def set_in(file: str, **values: Any) -> Change:
    """Change fields of a JSON file of a checkpoint folder."""

    def change(folder: Path) -> None:
        path = folder / file
        raw = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**raw, **values}))

    return change


def set_in_owl2(**values: Any) -> Change:
    """Change fields of `preprocessor_config.json` that are ours."""

    def change(folder: Path) -> None:
        own = json.loads((folder / "preprocessor_config.json").read_text()).get("owl2", {})
        set_in("preprocessor_config.json", owl2={**own, **values})(folder)

    return change


def lively(folder: Path) -> OwlEngine:
    return OwlEngine(owl2.load(folder, progress=False), str(folder))


CHANGES: dict[str, Change] = {
    r"processor\.owl2\.resize 'square' -> 'crop'": set_in_owl2(resize="crop"),
    r"processor\.image_mean": set_in("preprocessor_config.json", image_mean=[0.0, 0.0, 0.0]),
    r"processor\.image_std": set_in("preprocessor_config.json", image_std=[0.1, 0.1, 0.1]),
    r"conversation 'mplug_owl2' -> 'vicuna_v1'": set_in_owl2(template="vicuna_v1"),
    r"tokenizer": set_in("tokenizer_config.json", add_bos_token=False),
    r"end_tokens .* -> \[2, 40\]": set_in("generation_config.json", eos_token_id=[2, 40]),
    r"model\.rms_norm_eps": set_in("config.json", rms_norm_eps=0.1),
}


@pytest.mark.parametrize("message", CHANGES)
def test_answers_of_a_changed_checkpoint_are_not_mixed_in(
    message: str, checkpoint: Path, engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    CHANGES[message](changed)
    run(engine, vqa_data, tmp_path / "out", limit=4)
    before = outputs(tmp_path / "out")
    with pytest.raises(PredictionError, match=rf"{message}.*choose another --out"):
        run(lively(changed), vqa_data, tmp_path / "out")
    assert outputs(tmp_path / "out") == before


def test_another_identity_of_a_later_task_is_found_before_the_first_question(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "BoolQ").mkdir(parents=True)
    question = {"question": "is it", "passage": "An owl.", "idx": 0, "label": "true"}
    write_json(data / "BoolQ" / "val.jsonl", question)
    for name in ("coco", "vqav2"):
        (data / name).symlink_to(vqa_data / name)
    run(engine, data, tmp_path / "out", limit=2)
    plans, _ = plan_tasks([find_task("boolq"), find_task("vqav2")], data, beams=3)
    with pytest.raises(PredictionError, match=r"num_beams 5 -> 3"):
        run_plans(engine, plans, data, tmp_path / "out")
    assert tasks_of(tmp_path / "out") == ["vqav2"], "boolq, which comes first, was not asked"


def test_other_decoding_and_another_type_of_numbers_are_named(
    engine: OwlEngine, checkpoint: Path, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path, limit=2)
    with pytest.raises(PredictionError, match=r"decoding\.num_beams 5 -> 4"):
        run(engine, vqa_data, tmp_path, beams=4)
    halved = OwlEngine(owl2.load(checkpoint, dtype="bfloat16", progress=False))
    with pytest.raises(PredictionError, match=r"engine\.dtype 'float32' -> 'bfloat16'"):
        run(halved, vqa_data, tmp_path)


def test_a_moved_checkpoint_and_settings_without_effect_continue_the_run(
    engine: OwlEngine, checkpoint: Path, vqa_data: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    set_in("generation_config.json", max_new_tokens=7, temperature=0.3, do_sample=True)(moved)
    assert identity_of(lively(moved).owl) == engine.identity
    run(engine, vqa_data, tmp_path / "out", limit=4)
    assert run(lively(moved), vqa_data, tmp_path / "out").num_kept == 4


def forget(out: Path, *fields: str) -> None:
    """Rewrite the head of a run as an earlier version did."""
    (path,) = (out / "predictions").iterdir()
    head, *rows = path.read_text().splitlines(keepends=True)
    raw = json.loads(head)
    del raw["config"]["sample"]
    for name in ("num_beams", "length_penalty"):
        del raw["config"]["decoding"][name]
    for name in fields:
        del raw["config"]["engine"][name]
    path.write_text(json.dumps(raw) + "\n" + "".join(rows))


def test_a_folder_of_an_earlier_version_is_scored_and_reported_but_not_continued(
    engine: OwlEngine, vqa_data: Path, tmp_path: Path
) -> None:
    run(engine, vqa_data, tmp_path)
    forget(tmp_path, "tokenizer", "processor", "model", "end_tokens")
    (result,) = score_run(tmp_path)
    assert len(result.answers) == NUM_QUESTIONS
    assert "VQAv2 val" in write_report([Run("run", tmp_path, [result], {})], tmp_path)["md"].read_text()
    with pytest.raises(PredictionError, match=r"did not record processor.*another --out.*still work"):
        run(engine, vqa_data, tmp_path)


def test_a_folder_of_a_server_without_recorded_beams_says_so(vqa_data: Path, tmp_path: Path) -> None:
    run(Scripted({}), vqa_data, tmp_path)
    forget(tmp_path)
    with pytest.raises(PredictionError, match=r"decoding\.num_beams \(not recorded\) -> 5"):
        run(Scripted({}), vqa_data, tmp_path)


def test_an_engine_without_beams_records_that_it_has_none(vqa_data: Path, tmp_path: Path) -> None:
    run(Scripted({}, has_beams=False), vqa_data, tmp_path, beams=5)
    assert read(tmp_path).config.decoding["num_beams"] == 1

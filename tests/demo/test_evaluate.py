"""The demo is evaluated by owl2.eval: as in training, resumable, and also through the official tasks."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl2.api import Owl2
from owl2.demo.evaluate import HeldOut, evaluate, evaluate_official, normalise, results
from owl2.demo.world.corpus import WorldSizes, write_world
from owl2.demo.world.test_sets import MAIN_KINDS
from owl2.eval.answers.predictions import read_task
from owl2.eval.engines.local import OwlEngine
from owl2.eval.runner import choose_tasks, plan_tasks, prompt_of
from owl2.eval.task import Answer
from owl2.jsonl import read_jsonl
from tests.eval.conftest import checkpoint, engine, owl, sentencepiece_tokenizer  # noqa: F401  (fixtures)
from tests.processor.conftest import sentencepiece_model  # noqa: F401

ROOT = Path(__file__).parents[2]
SIZES = WorldSizes(
    pretrain_images=2,
    instruct_images=2,
    val_images=3,
    test_questions=10,
    lm_conversations=2,
    text_conversations=2,
    easyvqa_images=1,
    image_size=32,
)


@pytest.fixture(scope="module")
def world(assets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "world"
    write_world(out, SIZES, processes=1, assets=assets)
    return out


@pytest.fixture(scope="module")
def demo(world: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The folder of a demo whose model, an untrained one, has answered everything."""
    out = tmp_path_factory.mktemp("demo")
    (out / "world").symlink_to(world)
    (out / "checkpoint").symlink_to(checkpoint)
    evaluate(out, checkpoint)
    evaluate_official(out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def items_of(world: Path) -> list[Any]:
    return HeldOut().load(world / "test").items


def ask(owl: Owl2, asked: Sequence[tuple[Any, str]]) -> list[str]:  # noqa: F811
    """The answers to (image, question) pairs, without owl2.eval."""
    turns = [
        [*([{"type": "image", "image": image}] if image else []), {"type": "text", "text": question}]
        for image, question in asked
    ]
    inputs = owl.processor.chat([[{"role": "user", "content": turn}] for turn in turns])
    return [owl.processor.decode(ids).strip() for ids in owl.generate(**inputs, max_new_tokens=8)]


def test_every_question_has_the_answer_that_the_model_gives_outside_of_owl2_eval(
    demo: Path,
    world: Path,
    owl: Owl2,  # noqa: F811
) -> None:
    answers = rows(demo / "answers.jsonl")
    assert [row["id"] for row in answers] == [row["id"] for row in rows(world / "test/questions.jsonl")]
    asked = [(row["image"] and world / "test" / row["image"], row["question"]) for row in answers]
    assert [row["said"] for row in answers] == ask(owl, asked)
    assert len({row["said"] for row in answers}) > 1


@pytest.mark.parametrize("template", ["blank_image", "text"])
def test_the_baselines_see_a_blank_image_or_none(
    demo: Path,
    world: Path,
    owl: Owl2,  # noqa: F811
    template: str,
) -> None:
    predictions = read_task(demo / "held_out" / template, "held_out")
    assert predictions is not None
    grey = Image.new("RGB", (64, 64), (124, 116, 104)) if template == "blank_image" else None
    items = items_of(world)
    said = [predictions.by_id[item.id].output.strip() for item in items]
    assert said == ask(owl, [(grey, item.question) for item in items])


def test_the_prompt_ends_as_in_training(engine: OwlEngine, world: Path) -> None:  # noqa: F811
    """The ids of the prompt are those in front of the answer in a training sample."""
    task, (item, *_) = HeldOut(), items_of(world)
    messages = [*task.templates["image"].messages(item), {"role": "assistant", "content": "yes"}]
    opened = [
        {**m, "content": [{**p, "image": p["image"].open()} if "image" in p else p for p in m["content"]]}
        if not isinstance(m["content"], str)
        else m
        for m in messages
    ]
    sample = engine.owl.processor.encode(opened)
    prompt = prompt_of(task, "image", task.decoding, item)
    request = engine.prepare([prompt]).requests[0]
    assert request.ids == sample.ids[: sample.is_target.index(True)]


def answered(pairs: Sequence[tuple[str, str]], kind: str, world: Path) -> list[Answer]:
    """Answers to the questions of a kind, given as (reference, answer)."""
    item = next(item for item in items_of(world) if item.category["kind"] == kind)
    return [
        Answer(replace(item, references=(reference,)), said, HeldOut().parse(item, said))
        for reference, said in pairs
    ]


def test_results_compare_the_model_with_three_ways_to_answer_without_looking(world: Path) -> None:
    model = answered([("red", " Red."), ("red", "blue"), ("blue", "blue"), ("red", "")], "colour", world)
    blank = answered([("red", "red"), ("red", "blue"), ("blue", "red"), ("red", "green")], "colour", world)
    alone = answered([("red", "a"), ("red", "b"), ("blue", "c"), ("red", "reddish")], "colour", world)
    assert results(model, blank, alone) == {
        "colour": {
            "n": 4,
            "accuracy": 0.5,
            "blank_image": 0.25,
            "majority": 0.75,
            "language_model": 0.0,
        }
    }


def test_case_blanks_and_a_full_stop_do_not_count() -> None:
    assert normalise("  Top Left . ") == "top left"
    assert normalise("2.5") == "2.5"


def test_results_hold_every_kind_and_agree_with_the_answers(demo: Path) -> None:
    table = json.loads((demo / "results.json").read_text())
    answers = rows(demo / "answers.jsonl")
    assert tuple(table) == MAIN_KINDS
    for kind, row in table.items():
        right = [answer["right"] for answer in answers if answer["kind"] == kind]
        assert row["n"] == len(right) == 10
        assert row["accuracy"] == sum(right) / 10
    assert table["yes_no"]["majority"] == 0.5
    assert table["counting"]["majority"] == 0.2


def test_an_interrupted_evaluation_keeps_its_answers(demo: Path, checkpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    for name in ("world", "checkpoint"):
        (tmp_path / name).symlink_to((demo / name).resolve())
    (file,) = (demo / "held_out/image/predictions").glob("*.jsonl")
    copy = tmp_path / "held_out/image/predictions" / file.name
    copy.parent.mkdir(parents=True)
    lines = file.read_bytes().splitlines(keepends=True)
    marked = lines[1].replace(b'"output": "', b'"output": "kept ')
    copy.write_bytes(lines[0] + marked + lines[2][:20])
    evaluate(tmp_path, checkpoint)
    before, after = ({row["id"]: row["said"] for row in rows(d / "answers.jsonl")} for d in (demo, tmp_path))
    (changed,) = [name for name in before if before[name] != after[name]]
    assert after[changed].startswith("kept")


def test_the_official_tasks_find_their_files_in_the_world_and_ask_the_same_questions(
    demo: Path, world: Path
) -> None:
    plans, _ = plan_tasks(choose_tasks("all"), world / "test")
    items = {plan.task.name: plan.loaded.items for plan in plans}
    assert set(items) == {"mmbench_dev", "pope", "vqav2"}
    assert not [plan.task.name for plan in plans if plan.loaded.skipped]
    shown = [item for item in items_of(world) if item.images]
    assert {(item.question, item.images[0].read()) for item in items["vqav2"]} == {
        (item.question, item.images[0].read()) for item in shown
    }
    choices = [row for row in rows(world / "test/more.jsonl") if row["kind"] == "choice"]
    assert len(items["mmbench_dev"]) == 4 * len(choices) > 0
    for name in items:
        predictions = read_task(demo / "benchmarks", name)
        assert predictions is not None
        assert len(predictions.by_id) == len(items[name])
    assert (demo / "benchmarks/report.html").exists()


DEMO = Path(os.environ.get("OWL2_DEMO", ROOT / "runs/demo"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (DEMO / "results.json").exists(), reason="needs `make demo`, or its folder in OWL2_DEMO"
)
def test_a_finished_demo_is_far_above_chance_in_the_official_tasks_and_near_its_own_figures() -> None:
    """`make demo` trains for half an hour; this looks at what it left."""
    if json.loads((DEMO / "preset.json").read_text())["preset"] == "smoke":
        pytest.skip("the preset smoke learns nothing")
    scored = json.loads((DEMO / "benchmarks/scores.json").read_text())["tasks"]
    figures = {
        (task["task"], score["metric"], score["group"]): score for task in scored for score in task["scores"]
    }
    own = json.loads((DEMO / "results.json").read_text())
    looking = [own[kind]["accuracy"] for kind in MAIN_KINDS if kind != "text"]
    vqa = next(score for (task, _, group), score in figures.items() if task == "vqav2" and not group)
    assert (
        vqa["value"] > 100 * max(own[kind]["blank_image"] for kind in ("naming", "colour", "counting")) + 20
    )
    assert abs(vqa["value"] - 100 * sum(looking) / len(looking)) < 5
    pope = [
        score["value"]
        for (task, metric, _), score in figures.items()
        if (task, metric) == ("pope", "accuracy")
    ]
    assert len(pope) == 3
    assert min(pope) > 65

"""The demo's evaluation, by `owl2.eval`: held-out questions with three baselines, then the official tasks.

The five kinds of held-out questions are a task like any benchmark (`HeldOut`), scored by exact match after
trimming and lower case. The model is compared with three ways to answer without looking: the same model shown
a blank image, the most frequent answer of the test, and the language model before it saw any image. The same
test as official files (VQAv2, POPE, MMBench) is what `owl2 eval run --data DEMO/world/test` asks.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

import owl2
from owl2.data.sample import StoredImage
from owl2.demo.world.test_sets import MAIN_KINDS
from owl2.eval.answers.predictions import read_task
from owl2.eval.engines.local import OwlEngine
from owl2.eval.metrics.averages import mean, mean_by_group
from owl2.eval.report.display import Bar, print_results
from owl2.eval.report.rows import Run
from owl2.eval.report.write import write_report
from owl2.eval.runner import Shard, choose_tasks, plan_tasks, run_plans
from owl2.eval.scoring.score import score_run, score_task, write_scores
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template
from owl2.eval.tasks.prompts import turn
from owl2.files import write_file
from owl2.jsonl import read_jsonl, to_line
from owl2.processor.template import Message

FOLDER = "held_out"
BENCHMARKS = "benchmarks"
"""Folders of answers: to the held-out questions, one for each template, and to the official tasks."""
GREY = (124, 116, 104)


def _blank_image() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), GREY).save(stream, "PNG")
    return stream.getvalue()


BLANK = StoredImage("blank", _blank_image)


def as_trained(item: Item) -> list[Message]:
    """The question as in training: image and text, without instructions."""
    return turn(item, item.question)


def with_blank_image(item: Item) -> list[Message]:
    """A blank image in place of the question's own."""
    return turn(replace(item, images=(BLANK,)), item.question)


def without_image(item: Item) -> list[Message]:
    """The text alone."""
    return turn(replace(item, images=()), item.question)


class HeldOut(Task):
    """The demo's test, `questions.jsonl`; a task of the demo only, so it is not registered."""

    name = "held_out"
    title = "Held-out questions"
    files = (DataFile("questions.jsonl", "owl2 demo"),)
    templates: ClassVar[dict[str, Template]] = {
        "image": Template("owl2 demo", as_trained),
        "blank_image": Template("owl2 demo", with_blank_image),
        "text": Template("owl2 demo", without_image),
    }
    decoding = Decoding(max_new_tokens=8)
    expected = (1500, 100)

    def read(self, data: Path) -> Iterator[Item]:
        for _, row in read_jsonl(self.find(data)["questions.jsonl"]):
            image = row.get("image")
            yield Item(
                id=row["id"],
                question=row["question"],
                images=() if image is None else (StoredImage(image, (data / image).read_bytes),),
                references=(row["answer"],),
                category={"kind": row["kind"]},
            )

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip() or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        values = [float(is_right(answer)) for answer in answers]
        overall = mean("exact match", answers, values)
        return [overall, *mean_by_group("kind", "exact match", answers, values)]


def evaluate(out: Path, language: Path) -> dict[str, dict[str, float]]:
    """Ask the held-out questions; write `results.json`, which is returned, and `answers.jsonl`.

    Args:
        out: folder of a demo whose checkpoint is finished.
        language: checkpoint of the language model alone.
    """
    model = _engine(out / "checkpoint")
    answers = _ask(model, "image", out)
    blank = _ask(model, "blank_image", out)
    alone = _ask(_engine(language), "text", out)
    table = results(answers, blank, alone)
    write_file(out / "answers.jsonl", b"".join(to_line(_answer_row(answer)) for answer in answers))
    write_file(out / "results.json", json.dumps(table, indent=1).encode())
    return table


def evaluate_official(out: Path) -> None:
    """Run the official tasks whose files the world has, as `owl2 eval run` does, and write their report."""
    folder, data = out / BENCHMARKS, out / "world/test"
    plans, _ = plan_tasks(choose_tasks("all"), data)
    with Bar(plans, Shard()) as bar:
        run_plans(_engine(out / "checkpoint"), plans, data, folder, watch=bar)
    results = score_run(folder, data, loaded={plan.task.name: plan.loaded for plan in plans})
    write_scores(folder, results)
    runs = [Run(out.resolve().name, folder, results, {})]
    write_report(runs, folder)
    print_results(runs)


def _engine(checkpoint: Path) -> OwlEngine:
    return OwlEngine(owl2.load(checkpoint, progress=False), str(checkpoint))


def _ask(engine: OwlEngine, template: str, out: Path) -> list[Answer]:
    """The answers to all held-out questions, in their order; those that the folder has are kept."""
    task, folder, data = HeldOut(), out / FOLDER / template, out / "world/test"
    plans, _ = plan_tasks([task], data, template=template)
    with Bar(plans, Shard()) as bar:
        run_plans(engine, plans, data, folder, watch=bar)
    predictions = read_task(folder, task.name)
    assert predictions is not None, "the run has just written them"
    return score_task(folder, task, predictions, data, plans[0].loaded).answers


def results(
    answers: Sequence[Answer], blank: Sequence[Answer], alone: Sequence[Answer]
) -> dict[str, dict[str, float]]:
    """The content of `results.json`: by kind, n and the accuracies of the model and of the baselines."""
    table = {}
    for kind in MAIN_KINDS:
        if chosen := _of_kind(answers, kind):
            references = Counter(normalise(answer.item.references[0]) for answer in chosen)
            table[kind] = {
                "n": len(chosen),
                "accuracy": accuracy(chosen),
                "blank_image": accuracy(_of_kind(blank, kind)),
                "majority": max(references.values()) / len(chosen),
                "language_model": accuracy(_of_kind(alone, kind)),
            }
    return table


def accuracy(answers: Sequence[Answer]) -> float:
    """Share of right answers."""
    return sum(map(is_right, answers)) / len(answers)


def is_right(answer: Answer) -> bool:
    """Whether the answer is the reference, apart from case, blanks and a full stop at the end."""
    return normalise(answer.output) == normalise(answer.item.references[0])


def normalise(answer: str) -> str:
    """Lower case, without white space around it and full stop behind it."""
    return answer.strip().rstrip(".").strip().lower()


def _of_kind(answers: Sequence[Answer], kind: str) -> list[Answer]:
    return [answer for answer in answers if answer.item.category["kind"] == kind]


def _answer_row(answer: Answer) -> dict[str, Any]:
    item = answer.item
    return {
        "id": item.id,
        "kind": item.category["kind"],
        "question": item.question,
        "answer": item.references[0],
        "said": answer.output.strip(),
        "image": item.images[0].name if item.images else None,
        "right": is_right(answer),
    }

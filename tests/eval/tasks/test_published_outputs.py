"""Outputs in the form in which other projects publish theirs, scored to figures worked out by hand.

The real ones (LLaVA-1.5's) reproduce its published figures; they are not ours to keep, so these are made the
same way: see `tests/data/published`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from owl2.eval.task import Answer, Item, find_task
from tests.eval.tasks.miniature import figures

PUBLISHED = Path(__file__).parents[2] / "data/published"


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PUBLISHED / name).read_text().splitlines()]


def scored(name: str, pairs: Iterable[tuple[Item, str]]) -> dict[str, float]:
    """Figures of a task for these items and what was said to them."""
    task = find_task(name)
    return figures(task.score([Answer(item, said, task.parse(item, said)) for item, said in pairs]))


def test_popes_five_figures_of_an_answer_file() -> None:
    said = {row["question_id"]: row["text"] for row in lines("pope_answers.jsonl")}
    items = [
        (
            Item(
                str(row["question_id"]), row["text"], references=(row["label"],), category={"split": "random"}
            ),
            said[row["question_id"]],
        )
        for row in lines("pope_random.jsonl")
    ]
    # Of ten yes, seven are read as yes; of ten no, eight as no: "Nothing of that kind" has no "no" or "not".
    assert scored("pope", items) == {
        "accuracy random": 75.0,
        "precision random": pytest.approx(100 * 7 / 9, abs=1e-6),
        "recall random": 70.0,
        "F1 random": pytest.approx(100 * 14 / 19, abs=1e-6),
        "yes ratio random": 45.0,
    }


def test_mmes_subtasks_of_result_files() -> None:
    pairs = []
    for subtask in ("existence", "count"):
        text = (PUBLISHED / f"mme/{subtask}.txt").read_text()
        for number, line in enumerate(text.splitlines()):
            image, question, right, said = line.split("\t")
            category = {"kind": "perception", "subtask": subtask}
            item = Item(f"{image}/{number}", question, references=(right.lower(),), category=category)
            pairs.append((Item(**{**vars(item), "cluster": f"{subtask}/{image}"}), said))
    # existence: 5 of 6 answers and 2 of 3 images; count: 1 of 4 answers and no image, as "it is not" and
    # "A dog" have no yes or no in their first four characters.
    assert scored("mme", pairs) == {
        "sum of accuracy + accuracy+ perception": 175.0,
        "accuracy + accuracy+ existence": 150.0,
        "accuracy + accuracy+ count": 25.0,
    }


def test_mmbenchs_circular_and_vanilla_accuracy_of_an_answer_file() -> None:
    pairs = []
    for row in lines("mmbench_dev.jsonl"):
        item = Item(
            str(row["question_id"]),
            "?",
            choices=dict(zip(row["option_char"], row["options"], strict=True)),
            references=(row["answer"],),
            cluster=str(row["question_id"] % 1_000_000),
        )
        pairs.append((item, row["text"]))
    # Right under all rotations: 1 and 2; as first asked: all three.
    assert scored("mmbench_dev", pairs) == {
        "CircularEval accuracy": pytest.approx(200 / 3, abs=1e-6),
        "vanilla accuracy": 100.0,
    }

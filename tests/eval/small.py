"""A small VQAv2 in the official format, and helpers around runs over it."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from owl2.eval.answers.predictions import Predictions, read_task
from owl2.eval.engines.engine import Engine, Prompt, Reply
from owl2.eval.runner import Batching, Outcome, Plan, Shard, plan_tasks, run_plan
from owl2.eval.task import find_task

CONTEXT = 256
NUM_QUESTIONS = 16
WORDS = (
    "the",
    "a",
    "bird",
    "owl",
    "tree",
    "red",
    "green",
    "two",
    "many",
    "what",
    "colour",
    "is",
    "on",
    "left",
)
ANSWERS = ("yes", "no", "red", "owl", "2")


def write_vqa(data: Path, num_questions: int, num_images: int = 8, longest: int = 24) -> Path:
    """Write validation questions of 2 to `longest` words with their ten answers; returns `data`."""
    rng = random.Random(0)
    images = data / "coco" / "val2014"
    images.mkdir(parents=True)
    for number in range(num_images):
        colour = tuple(rng.randrange(256) for _ in range(3))
        Image.new("RGB", (24 + number, 20), colour).save(images / f"COCO_val2014_{number:012d}.jpg")
    questions, annotations = [], []
    for number in range(num_questions):
        words = rng.choices(WORDS, k=rng.randrange(2, longest + 1))
        ids = {"image_id": number % num_images, "question_id": 1000 + number}
        questions.append({**ids, "question": f"{' '.join(words).capitalize()}?"})
        given = [
            {"answer": rng.choice(ANSWERS), "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)
        ]
        kinds = {"question_type": "what", "answer_type": rng.choice(["yes/no", "other"])}
        annotations.append({**ids, **kinds, "answers": given, "multiple_choice_answer": given[0]["answer"]})
    folder = data / "vqav2"
    folder.mkdir()
    asked = {"data_subtype": "val2014", "task_type": "Open-Ended", "questions": questions}
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", asked)
    right = {"data_subtype": "val2014", "annotations": annotations}
    write_json(folder / "v2_mscoco_val2014_annotations.json", right)
    return data


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def plan(data: Path, task: str = "vqav2", shard: Shard | None = None, **settings: Any) -> Plan:
    """The plan of one task whose files are there."""
    (planned,), missing = plan_tasks([find_task(task)], data, shard=shard, **settings)
    assert not missing
    return planned


def run(
    engine: Engine,
    data: Path,
    out: Path,
    task: str = "vqav2",
    *,
    batching: Batching | None = None,
    shard: Shard | None = None,
    **settings: Any,
) -> Outcome:
    """Run one task."""
    return run_plan(engine, plan(data, task, shard, **settings), data, out, batching=batching, shard=shard)


def read(out: Path, task: str = "vqav2") -> Predictions:
    found = read_task(out, task)
    assert found is not None
    return found


def outputs(out: Path, task: str = "vqav2") -> dict[str, str]:
    return {name: row.output for name, row in read(out, task).by_id.items()}


def lines(out: Path, task: str = "vqav2") -> list[dict[str, Any]]:
    """Every answer in the files, heads left out."""
    rows = [
        json.loads(line)
        for path in sorted((out / "predictions").glob(f"{task}.*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [row for row in rows if "id" in row]


@dataclasses.dataclass
class Scripted:
    """An engine that answers by a table, so that scores are known."""

    replies: dict[str, Reply]
    has_beams: bool = True
    identity: dict[str, Any] = dataclasses.field(default_factory=lambda: {"kind": "scripted"})
    source: str = "script"

    def measure(self, prompt: Prompt) -> int:
        return len(prompt.id)

    def prepare(self, prompts: list[Prompt]) -> list[Prompt]:
        return list(prompts)

    def answer(self, prepared: list[Prompt]) -> list[Reply]:
        return [self.replies.get(prompt.id, Reply("no idea")) for prompt in prepared]

"""The demo's test (and, smaller, its validation): single questions with balanced answers.

The same test is also written as the official files of VQAv2, POPE and MMBench, so that `owl2 eval run` asks
it like any benchmark. Balance is by construction: yes and no alternate, and so do the counts 1 to 5. POPE's
three settings are made as POPE makes them: what is not there is random, or most frequent in training, or what
training most often shows together with what is there.
"""

import base64
import csv
import io
import json
import shutil
from collections import Counter
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from owl2.demo.world.questions import QA, WEIGHTS, ask, yes_no
from owl2.demo.world.scenes import Scene, scene
from owl2.demo.world.text import instruction
from owl2.demo.world.vocabulary import MAX_COUNT, NAMES, Split, article
from owl2.demo.world.writers import Part, World, jpeg, write, write_jsonl
from owl2.jsonl import read_jsonl

MAIN_KINDS = ("yes_no", "naming", "colour", "counting", "text")
OTHER_KINDS = tuple(kind for kind in WEIGHTS if kind not in MAIN_KINDS)
POPE_SETTINGS = ("random", "popular", "adversarial")
COCO_IMAGES = "coco/val2014"
"""Where VQAv2 and POPE have their images, below the folder of the benchmarks."""
SCENES_FOR = {
    "naming": ("one", "one", "several"),
    "counting": ("group",),
    "comparison": ("several", "group"),
    "reading": ("word",),
    "position": ("one", "several"),
}
"""Kinds of scenes that admit a kind of question; the kinds that are not here take any scene."""
FIRST_IMAGE = {
    topic: 10_000 * slot for slot, topic in enumerate((*MAIN_KINDS, *OTHER_KINDS, "pope"), start=1)
}
"""Number of a topic's first image: a number names one image of the test."""


def write_questions(world: World, part: Part) -> None:
    """One question of the part's topic for each of `count` images; for the topic `text`, without images.

    Records are {"id", "image", "kind", "question", "answer"} and, for multiple choice, "choices".
    """
    records = []
    for index in range(part.count):
        identifier = f"{part.topic}-{index:05d}"
        if part.topic == "text":
            qa = instruction(Random(f"owl2 test {part.split} {world.number(index)}"), part.split)
            records.append({"id": identifier, "kind": qa.kind, "question": qa.question, "answer": qa.answer})
            continue
        qa, image = _question(world, part.split, part.topic, index)
        name = f"{FIRST_IMAGE[part.topic] + index:012d}.jpg"
        write(world.out / part.images / name, image)
        record: dict[str, Any] = {"id": identifier, "image": f"images/{name}", "kind": qa.kind}
        record |= {"question": qa.question, "answer": qa.answer}
        if qa.choices:
            record["choices"] = list(qa.choices)
        records.append(record)
    write_jsonl(world.out / part.path, records)


def _question(world: World, split: Split, kind: str, index: int) -> tuple[QA, bytes]:
    """The index-th question of a kind, from the first scene that admits it with the answer whose turn it
    is."""
    count = index % MAX_COUNT + 1 if kind == "counting" else None
    for attempt in range(1000):
        number = world.number(FIRST_IMAGE[kind] * 1000 + index * 1000 + attempt)
        rng = Random(f"owl2 test {split} {kind} {number}")
        scene_kind = rng.choice(SCENES_FOR[kind]) if kind in SCENES_FOR else None
        image, seen = world.drawings.render(scene(number, split, scene_kind, count), world.image_size)
        qa = yes_no(seen, rng, index % 2 == 0) if kind == "yes_no" else ask(kind, seen, rng)
        if qa and count in (None, int(qa.answer) if qa.answer.isdigit() else None):
            return qa, jpeg(image)
    raise RuntimeError(f"none of 1,000 scenes of {split} admits question {index} of kind {kind}")


def write_pope(world: World, part: Part) -> None:
    """POPE's questions for images of two or three things: each thing once, and as many that are not there.

    Records are {"setting", "image", "text", "label"}.
    """
    records = []
    for index in range(part.count):
        number = world.number(FIRST_IMAGE["pope"] * 1000 + index)
        image, seen = world.drawings.render(scene(number, part.split, "several"), world.image_size)
        name = f"{FIRST_IMAGE['pope'] + index:012d}.jpg"
        write(world.out / part.images / name, jpeg(image))
        for setting in POPE_SETTINGS:
            rng = Random(f"owl2 pope {setting} {number}")
            for present, missing in zip(seen.names, _absent(seen, setting, rng), strict=True):
                for thing, label in ((present, "yes"), (missing, "no")):
                    text = f"Is there {article(thing)} in the image?"
                    records.append({"setting": setting, "image": name, "text": text, "label": label})
    write_jsonl(world.out / part.path, records)


def _absent(seen: Scene, setting: str, rng: Random) -> list[str]:
    others = [name for name in NAMES if name not in seen.names]
    if setting == "random":
        return rng.sample(others, len(seen.names))
    alone, together = _frequencies()
    if setting == "popular":
        return sorted(others, key=lambda name: -alone[name])[: len(seen.names)]
    found: list[str] = []
    for present in seen.names:
        rest = [name for name in others if name not in found]
        found.append(max(rest, key=lambda name: together[frozenset((present, name))]))
    return found


@cache
def _frequencies() -> tuple[Counter[str], Counter[frozenset[str]]]:
    """How many of the first 4,000 training scenes show a thing, and two things together."""
    alone: Counter[str] = Counter()
    together: Counter[frozenset[str]] = Counter()
    for number in range(4_000):
        names = scene(number, "train").names
        alone.update(names)
        together.update(frozenset(pair) for pair in combinations(names, 2))
    return alone, together


def write_official(test: Path, pope_part: Path) -> None:
    """The finished questions as the files that the tasks `vqav2`, `pope` and `mmbench_dev` read."""
    _write_vqav2(test, [row for row in _rows(test / "questions.jsonl") if "image" in row])
    pope = _rows(pope_part)
    for setting in POPE_SETTINGS:
        rows = [row for row in pope if row["setting"] == setting]
        numbered = (
            {"question_id": number, "image": row["image"], "text": row["text"], "label": row["label"]}
            for number, row in enumerate(rows, start=1)
        )
        write_jsonl(test / f"pope/output/coco/coco_pope_{setting}.json", numbered)
    _write_mmbench(test, [row for row in _rows(test / "more.jsonl") if row["kind"] == "choice"])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def _write_vqav2(test: Path, rows: list[dict[str, Any]]) -> None:
    """The official layout: val2014 images by number, questions, annotations with ten equal answers."""
    (test / COCO_IMAGES).mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for row in rows:
        image_id = int(Path(row["image"]).stem)
        shutil.copyfile(test / row["image"], test / COCO_IMAGES / f"COCO_val2014_{image_id:012d}.jpg")
        ids = {"image_id": image_id, "question_id": image_id * 1000}
        questions.append({**ids, "question": row["question"]})
        answer = row["answer"]
        annotations.append(
            {
                **ids,
                "question_type": " ".join(row["question"].lower().rstrip("?").split()[:2]),
                "multiple_choice_answer": answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)
                ],
                "answer_type": {"yes_no": "yes/no", "counting": "number"}.get(row["kind"], "other"),
            }
        )
    head: dict[str, Any] = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    asked = {**head, "task_type": "Open-Ended", "questions": questions}
    folder = test / "vqav2"
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", json.dumps(asked).encode())
    annotated = {**head, "annotations": annotations}
    write(folder / "v2_mscoco_val2014_annotations.json", json.dumps(annotated).encode())


MMBENCH_COLUMNS = [
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]
MMBENCH_CATEGORIES = (
    ("color", "attribute_recognition", "finegrained_perception (instance-level)"),
    ("How many", "object_localization", "finegrained_perception (instance-level)"),
    ("word", "ocr", "finegrained_perception (instance-level)"),
    ("sign", "ocr", "finegrained_perception (instance-level)"),
    (" at the ", "spatial_relationship", "finegrained_perception (cross-instance)"),
    ("", "image_topic", "coarse_perception"),
)
"""(what the question contains, category, ability above it); the first that fits."""


def _write_mmbench(test: Path, rows: list[dict[str, Any]]) -> None:
    """A table with base64 images; each question four times with rotated options, index + 1,000,000 each."""
    stream = io.StringIO(newline="")
    table = csv.writer(stream, delimiter="\t", lineterminator="\n")
    table.writerow(MMBENCH_COLUMNS)
    for rotation in range(4):
        for number, row in enumerate(rows):
            question = row["question"].split("\n")[0]
            options = row["choices"][rotation:] + row["choices"][:rotation]
            right = row["choices"]["ABCD".index(row["answer"])]
            _, category, above = next(entry for entry in MMBENCH_CATEGORIES if entry[0] in question)
            image = base64.b64encode((test / row["image"]).read_bytes()).decode()
            cells = (number + rotation * 1_000_000, question, "", *options, "ABCD"[options.index(right)])
            table.writerow((*cells, category, image, "owl2 world", above, "", "dev"))
    write(test / "mmbench/mmbench_dev_20230712.tsv", stream.getvalue().encode())

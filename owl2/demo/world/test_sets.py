"""The test (and, smaller, the validation) of the demo: single questions with balanced answers, and the same
test in the official formats of VQAv2, POPE and MMBench, so that the real evaluation tasks run on it.

Balance is by construction: yes and no in turn, counts 1 to 5 in turn. POPE's three settings are made as POPE
makes them: negatives at random, from the things most frequent in training, or from those that training most
often shows together with what is there.
"""

import base64
import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from owl2.demo.world.questions import QA, WEIGHTS, ask, yes_no
from owl2.demo.world.scenes import Scene, scene
from owl2.demo.world.text import instruction
from owl2.demo.world.world import MAX_COUNT, NAMES, Split, article
from owl2.demo.world.writers import Part, Studio, jpeg, write_atomically, write_jsonl

MAIN_KINDS = ("yes_no", "naming", "colour", "counting", "text")
OTHER_KINDS = tuple(kind for kind in WEIGHTS if kind not in MAIN_KINDS)
POPE_SETTINGS = ("random", "popular", "adversarial")
# Scene kinds that admit questions of a kind; all others take any scene.
SCENES_FOR = {
    "naming": ("one", "one", "several"),
    "counting": ("group",),
    "comparison": ("several", "group"),
    "reading": ("word",),
    "position": ("one", "several"),
}
# Where each test's image numbers start: one number names one image.
FIRST_IMAGE = {
    topic: 10_000 * slot for slot, topic in enumerate((*MAIN_KINDS, *OTHER_KINDS, "pope"), start=1)
}


def write_questions(studio: Studio, part: Part) -> None:
    """One question of the part's topic for each of `count` images; for the topic `text`, without images.

    Records are {"id", "image", "kind", "question", "answer"} and, for multiple choice, "choices".
    """
    records = []
    for index in range(part.count):
        identifier = f"{part.topic}-{index:05d}"
        if part.topic == "text":
            qa = instruction(Random(f"owl2 test {part.split} {studio.number(index)}"), part.split)
            records.append({"id": identifier, "kind": qa.kind, "question": qa.question, "answer": qa.answer})
            continue
        qa, image = _question(studio, part.split, part.topic, index)
        name = f"{FIRST_IMAGE[part.topic] + index:012d}.jpg"
        path = studio.out / part.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        record: dict[str, Any] = {"id": identifier, "image": f"images/{name}", "kind": qa.kind}
        record |= {"question": qa.question, "answer": qa.answer}
        if qa.choices:
            record["choices"] = list(qa.choices)
        records.append(record)
    write_jsonl(studio.out / part.path, records)


def _question(studio: Studio, split: Split, kind: str, index: int) -> tuple[QA, bytes]:
    """The index-th question of a kind: the first scene and draw that admit it with the answer whose turn it
    is."""
    count = index % MAX_COUNT + 1 if kind == "counting" else None
    for attempt in range(1000):
        number = studio.number(FIRST_IMAGE[kind] * 1000 + index * 1000 + attempt)
        rng = Random(f"owl2 test {split} {kind} {number}")
        scene_kind = rng.choice(SCENES_FOR[kind]) if kind in SCENES_FOR else None
        image, seen = studio.drawings.draw(scene(number, split, scene_kind, count), studio.image_size)
        qa = yes_no(seen, rng, index % 2 == 0) if kind == "yes_no" else ask(kind, seen, rng)
        if qa and count in (None, int(qa.answer) if qa.answer.isdigit() else None):
            return qa, jpeg(image)
    raise RuntimeError(
        f"no scene of {split} admits a question of kind {kind} (number {index}) in 1,000 draws"
    )


def write_pope(studio: Studio, part: Part) -> None:
    """POPE's questions for images of two or three things: each thing once, and as many absent ones, in the
    three settings. Records {"setting", "question_id", "image", "text", "label"}."""
    records = []
    (studio.out / part.images).mkdir(parents=True, exist_ok=True)
    for index in range(part.count):
        number = studio.number(FIRST_IMAGE["pope"] * 1000 + index)
        image, seen = studio.drawings.draw(scene(number, part.split, "several"), studio.image_size)
        name = f"{FIRST_IMAGE['pope'] + index:012d}.jpg"
        (studio.out / part.images / name).write_bytes(jpeg(image))
        for setting in POPE_SETTINGS:
            rng = Random(f"owl2 pope {setting} {number}")
            for present, missing in zip(seen.names, _absent(seen, setting, rng), strict=True):
                for thing, label in ((present, "yes"), (missing, "no")):
                    text = f"Is there {article(thing)} in the image?"
                    records.append({"setting": setting, "image": name, "text": text, "label": label})
    write_jsonl(studio.out / part.path, records)


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
    """`test/vqav2`, `test/pope` and `test/mmbench` from the finished questions."""
    questions = list(read_jsonl(test / "questions.jsonl"))
    _write_vqav2(test, [row for row in questions if "image" in row])
    pope = list(read_jsonl(pope_part))
    for setting in POPE_SETTINGS:
        rows = [row for row in pope if row["setting"] == setting]
        numbered = (
            {"question_id": number, "image": row["image"], "text": row["text"], "label": row["label"]}
            for number, row in enumerate(rows, start=1)
        )
        write_jsonl(test / "pope" / f"world_pope_{setting}.json", numbered)
    _write_mmbench(test, [row for row in read_jsonl(test / "more.jsonl") if row["kind"] == "choice"])


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_vqav2(test: Path, rows: list[dict[str, Any]]) -> None:
    """The official layout: val2014 images by number, questions, annotations with ten equal answers."""
    folder = test / "vqav2"
    (folder / "val2014").mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for row in rows:
        image_id = int(Path(row["image"]).stem)
        shutil.copyfile(test / row["image"], folder / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
        ids = {"image_id": image_id, "question_id": image_id * 1000}
        questions.append({**ids, "question": row["question"]})
        answer = row["answer"]
        tens = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
        kind = {"yes_no": "yes/no", "counting": "number"}.get(row["kind"], "other")
        start = " ".join(row["question"].lower().rstrip("?").split()[:2])
        annotations.append(
            {
                **ids,
                "question_type": start,
                "multiple_choice_answer": answer,
                "answers": tens,
                "answer_type": kind,
            }
        )
    head: dict[str, Any] = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    for name, content in (
        ("questions", {**head, "task_type": "Open-Ended", "questions": questions}),
        ("annotations", {**head, "annotations": annotations}),
    ):
        text = json.dumps(content)
        write_atomically(folder / f"{name}.json", lambda scratch, text=text: scratch.write_text(text))  # type: ignore[misc]


MMBENCH_COLUMNS = (
    *(
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
    ),
    *("comment", "split"),
)
MMBENCH_CATEGORIES = (
    ("color", "attribute_recognition", "finegrained_perception (instance-level)"),
    ("How many", "object_localization", "finegrained_perception (instance-level)"),
    ("word", "ocr", "finegrained_perception (instance-level)"),
    ("sign", "ocr", "finegrained_perception (instance-level)"),
    (" at the ", "spatial_relationship", "finegrained_perception (cross-instance)"),
    ("", "image_topic", "coarse_perception"),
)


def _write_mmbench(test: Path, rows: list[dict[str, Any]]) -> None:
    """dev.tsv with base64 images; each question also in its three rotations, index + 1,000,000 a turn."""

    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, delimiter="\t", lineterminator="\n")
            table.writerow(MMBENCH_COLUMNS)
            for turn in range(4):
                for number, row in enumerate(rows):
                    question = row["question"].split("\n")[0]
                    options = row["choices"][turn:] + row["choices"][:turn]
                    right = row["choices"]["ABCD".index(row["answer"])]
                    _, category, above = next(entry for entry in MMBENCH_CATEGORIES if entry[0] in question)
                    image = base64.b64encode((test / row["image"]).read_bytes()).decode()
                    cells = (number + turn * 1_000_000, question, "", *options, "ABCD"[options.index(right)])
                    table.writerow((*cells, category, image, "owl2 world", above, "", "dev"))

    write_atomically(test / "mmbench" / "dev.tsv", write)

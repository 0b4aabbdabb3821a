"""MME: two yes-or-no questions an image in 14 subtasks, 10 of perception (Table 2) and 4 of cognition.

A subtask scores 100 x accuracy + 100 x accuracy+ (both questions of an image right); perception is the sum
over its ten, 2000 at most. Prompt and reading are evaluate_mme.py's: the benchmark's own "Please answer yes
or no." is cut out (the blank before it stays), an answer is its first four characters. The release keeps
images beside their texts or in `images` and `questions_answers_YN`, and each subtask may have either; the
parquet files of lmms-lab/MME are read too.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.data.readers.shards import IMAGE_SUFFIXES
from owl2.data.sample import StoredImage
from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import official, parquet_image, read_parquet, read_text
from owl2.eval.metrics.yes_no import mme_answer, mme_score
from owl2.eval.scoring.averages import is_right, mean, mean_of_groups
from owl2.eval.task import Answer, DataFile, Decoding, EvalDataError, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import published, short_answer_below
from owl2.processor.template import Message

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
KINDS = {**dict.fromkeys(PERCEPTION, "perception"), **dict.fromkeys(COGNITION, "cognition")}
RELEASE = "mme/MME_Benchmark_release_version"
PARQUET = "mme/data"
REQUEST = "Please answer yes or no."


def without_request(item: Item) -> list[Message]:
    """As evaluate_mme.py, which leaves the blank that stood before the request."""
    return short_answer_below(dataclasses.replace(item, question=item.question.replace(REQUEST, "")))


def without_request_and_blank(item: Item) -> list[Message]:
    """As LLaVA and lmms-eval."""
    return short_answer_below(dataclasses.replace(item, question=item.question.replace(f" {REQUEST}", "")))


@task
class Mme(Task):
    name = "mme"
    title = "MME"
    files = (
        DataFile(
            RELEASE,
            "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (on request)",
            "research only",
        ),
        DataFile(
            PARQUET,
            "https://huggingface.co/datasets/lmms-lab/MME, its folder data",
            "research only",
            is_required=False,
            instead_of=RELEASE,
        ),
    )
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": published(without_request, "evaluate_mme.py"),
        "llava15": Template("LLaVA, llava_mme.jsonl", without_request_and_blank),
        "lmms-eval": Template("lmms-eval 0.7.3, mme.yaml", without_request_and_blank),
    }
    decoding = Decoding(max_new_tokens=10, min_new_tokens=1)
    expected = (2374,)

    def items(self, data: Path) -> list[Item]:
        place = official(self.find(data), self.files, RELEASE)[0]
        if place == data / PARQUET:
            return checked(self.name, _parquet_items(sorted(place.glob("*.parquet"))))
        # Some releases nest the subtasks once more.
        nested = place / "MME_Benchmark"
        root = nested if nested.is_dir() else place
        missing = [subtask for subtask in KINDS if not (root / subtask).is_dir()]
        if missing:
            raise EvalDataError(
                f"mme: {len(missing)} of {len(KINDS)} subtasks are not in {root}: {', '.join(missing)}"
            )
        return checked(self.name, [item for subtask in KINDS for item in _folder_items(root / subtask)])

    def parse(self, item: Item, output: str) -> str | None:
        return mme_answer(output)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        # Of a run over the first so many questions, the last image may lack its second.
        right = _right_by_image(answers)
        pairs = [answer for answer in answers if len(right[answer.item.cluster]) == 2]
        scores = [
            _sum(pairs, kind, paper_id)
            for kind, paper_id in (("perception", "2/9"), ("cognition", ""))
            if any(answer.item.category["kind"] == kind for answer in pairs)
        ]
        for subtask in KINDS:
            chosen = [answer for answer in pairs if answer.item.category["subtask"] == subtask]
            if chosen:
                scores.append(_subtask_score(chosen, subtask))
        return scores


def _folder_items(folder: Path) -> list[Item]:
    """The questions of a subtask in either layout."""
    is_split = (folder / "questions_answers_YN").is_dir()
    texts = folder / "questions_answers_YN" if is_split else folder
    # artwork keeps its images one folder deeper, in images/toy_dataset.
    found = sorted((folder / "images" if is_split else folder).rglob("*"))
    images = {path.stem: path for path in found if path.suffix.lower() in IMAGE_SUFFIXES}
    questions = {path: read_text(path).splitlines() for path in sorted(texts.glob("*.txt"))}
    if not questions:
        raise EvalDataError(f"{folder}: no texts with questions")
    missing = [path.stem for path in questions if path.stem not in images]
    if missing:
        raise EvalDataError(
            f"{folder}: {len(missing)} of {len(questions)} texts have no image, first {missing[0]}.txt"
        )
    items = []
    for path, lines in questions.items():
        file = images[path.stem]
        image = StoredImage(f"{folder.name}/{file.name}", file.read_bytes)
        pairs = [tuple(line.split("\t")) for line in lines if line.strip()]
        if len(pairs) != 2 or any(len(pair) != 2 for pair in pairs):
            raise EvalDataError(
                f"{path}: expected two lines of question, tab and Yes or No, found {lines!r:.100}"
            )
        items += [_item(str(path), folder.name, image, n, *pair) for n, pair in enumerate(pairs, start=1)]
    return items


def _parquet_items(files: Sequence[Path]) -> list[Item]:
    seen: dict[str, int] = {}
    items = []
    for record in read_parquet(files):
        name = Path(record.text("question_id")).name
        subtask = record.one_of("category", KINDS)
        number = seen[f"{subtask}/{name}"] = seen.get(f"{subtask}/{name}", 0) + 1
        image = dataclasses.replace(parquet_image(record, "image"), name=f"{subtask}/{name}")
        items.append(
            _item(record.where, subtask, image, number, record.text("question"), record.text("answer"))
        )
    return items


def _item(where: str, subtask: str, image: StoredImage, number: int, question: str, answer: str) -> Item:
    answer = answer.strip().lower()
    if answer not in ("yes", "no"):
        raise EvalDataError(f"{where}: the answer is {answer!r}, not yes or no")
    return Item(
        id=f"{image.name}/{number}",
        question=question,
        images=(image,),
        references=(answer,),
        category={"kind": KINDS[subtask], "subtask": subtask},
        cluster=image.name,
    )


def _right_by_image(answers: Sequence[Answer]) -> dict[str, list[bool]]:
    right: dict[str, list[bool]] = {}
    for answer in answers:
        right.setdefault(answer.item.cluster, []).append(is_right(answer))
    return right


def _shares(answers: Sequence[Answer]) -> list[float]:
    """What each answer adds to its subtask's score: 100 if it is right and 100 if both of its image are."""
    right = _right_by_image(answers)
    return [100.0 * (is_right(answer) + all(right[answer.item.cluster])) for answer in answers]


def _subtask_score(answers: Sequence[Answer], subtask: str) -> Score:
    score = mean("accuracy + accuracy+", answers, _shares(answers), scale=1.0, group=subtask)
    return dataclasses.replace(score, value=mme_score(_right_by_image(answers)).score)


def _sum(answers: Sequence[Answer], kind: str, paper_id: str) -> Score:
    """The sum over the subtasks of a kind, as the mean of their means times their number."""
    chosen = [answer for answer in answers if answer.item.category["kind"] == kind]
    number = len({answer.item.category["subtask"] for answer in chosen})
    shares = [number * share for share in _shares(chosen)]
    return mean_of_groups(
        "subtask",
        "sum of accuracy + accuracy+",
        chosen,
        shares,
        scale=1.0,
        group=kind,
        paper_id=paper_id,
    )

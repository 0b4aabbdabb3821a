"""MME: two yes-or-no questions an image in 14 subtasks, 10 of perception (Table 2) and 4 of cognition.

A subtask scores 100 x accuracy + 100 x accuracy+ (both questions of an image right); perception is the sum
over its ten, 2000 at most. Prompt and reading are those of evaluate_mme.py: the benchmark's own "Please
answer yes or no." is removed (the blank before it stays), and an answer is its first four characters. The
release has images next to their texts or in `images` and `questions_answers_YN`, and subtasks differ; the
parquet files of lmms-lab/MME are read, too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.data.readers.shards import IMAGE_SUFFIXES
from owl2.data.sample import StoredImage
from owl2.eval.formats.media import parquet_image
from owl2.eval.formats.records import Record, official, read_parquet, read_text, usable
from owl2.eval.metrics.averages import is_right, mean, mean_of_groups
from owl2.eval.metrics.yes_no import mme_answer, mme_score
from owl2.eval.task import Answer, DataFile, EvalDataError, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import SHORT_ANSWER, released, short_answer_below
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
    """As evaluate_mme.py, which leaves the blank before the request."""
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
        **released("evaluate_mme.py", without_request, SHORT_ANSWER),
        "llava15": Template("LLaVA, llava_mme.jsonl", without_request_and_blank),
        "lmms-eval": Template("lmms-eval 0.7.3, mme.yaml", without_request_and_blank),
    }
    decoding = SHORT_ANSWER
    expected = (2374,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        place = official(found, self.files, RELEASE)
        if place == found.get(PARQUET):
            yield from _parquet_items(sorted(place.glob("*.parquet")))
            return
        # Some releases nest the subtasks once more.
        nested = place / "MME_Benchmark"
        root = nested if nested.is_dir() else place
        missing = [subtask for subtask in KINDS if not (root / subtask).is_dir()]
        if missing:
            raise EvalDataError(
                f"mme: {len(missing)} of {len(KINDS)} subtasks are not in {root}: {', '.join(missing)}"
            )
        for subtask in KINDS:
            yield from _folder_items(root / subtask)

    def parse(self, item: Item, output: str) -> str | None:
        return mme_answer(output)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        # Of a part of the questions, or of an unusable record, an image may have one answer only.
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


def _folder_items(folder: Path) -> Iterator[Item | Skipped]:
    """The questions of a subtask in either layout."""
    is_split = (folder / "questions_answers_YN").is_dir()
    texts = folder / "questions_answers_YN" if is_split else folder
    # artwork keeps its images one folder deeper, in images/toy_dataset.
    found = sorted((folder / "images" if is_split else folder).rglob("*"))
    images = {path.stem: path for path in found if path.suffix.lower() in IMAGE_SUFFIXES}
    files = [Record(str(path), {"path": path}) for path in sorted(texts.glob("*.txt"))]
    if not files:
        raise EvalDataError(f"{folder}: no texts with questions")

    def pair(record: Record) -> list[Item]:
        path: Path = record["path"]
        if path.stem not in images:
            record.fail(f"no image {path.stem} in {folder}", lacks_file=True)
        image = StoredImage(f"{folder.name}/{images[path.stem].name}", images[path.stem].read_bytes)
        try:
            lines = [line.split("\t") for line in read_text(path).splitlines() if line.strip()]
        except EvalDataError as error:
            record.fail(str(error).removeprefix(f"{path}: "))
        if len(lines) != 2 or any(len(line) != 2 for line in lines):
            record.fail(f"expected two lines of question, tab and Yes or No, found {lines!r:.100}")
        return [_item(record, folder.name, image, n, *line) for n, line in enumerate(lines, start=1)]

    for made in usable(files, pair):
        if isinstance(made, Skipped):
            yield made
        else:
            yield from made


def _parquet_items(files: Sequence[Path]) -> Iterator[Item | Skipped]:
    seen: dict[str, int] = {}

    def make(record: Record) -> Item:
        subtask = record.one_of("category", KINDS)
        name = f"{subtask}/{Path(record.text('question_id')).name}"
        number = seen[name] = seen.get(name, 0) + 1
        image = parquet_image(record, "image", name)
        return _item(record, subtask, image, number, record.text("question"), record.text("answer"))

    return usable(read_parquet(files), make)


def _item(record: Record, subtask: str, image: StoredImage, number: int, question: str, answer: str) -> Item:
    answer = answer.strip().lower()
    if answer not in ("yes", "no"):
        record.fail(f"the answer is {answer!r}, not yes or no")
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
    """The sum over the subtasks of a kind, as the mean of their means times their number.

    Over some of the subtasks only, it is not compared with the paper's.
    """
    chosen = [answer for answer in answers if answer.item.category["kind"] == kind]
    number = len({answer.item.category["subtask"] for answer in chosen})
    is_whole = number == sum(other == kind for other in KINDS.values())
    shares = [number * share for share in _shares(chosen)]
    return mean_of_groups(
        "subtask",
        "sum of accuracy + accuracy+",
        chosen,
        shares,
        scale=1.0,
        group=kind,
        paper_id=paper_id if is_whole else "",
    )

"""Annotation formats that several benchmarks share: questions with answers, captions, questions on clips.

Papers are evaluated on conversions as often as on the official files (LAVIS's, Qwen's, Video-ChatGPT's), so
readers take either and tell them apart by content. Records are joined (answers to questions, clips to names)
by id, never by position; a question without its partner is skipped and counted.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from owl2.eval.formats.media import CLIP_SUFFIXES, MediaFolder
from owl2.eval.formats.records import (
    Record,
    Records,
    as_records,
    by_id,
    read_any,
    read_object,
    read_records,
    usable,
)
from owl2.eval.task import EvalDataError, Item, Skipped


def vqa_items(task: str, data: Path, questions: Path, annotations: Path) -> Iterator[Item | Skipped]:
    """Questions on COCO's val2014 with their answers.

    Raises:
        EvalDataError: another format or split.
    """
    right, skipped = read_vqa_answers(annotations)
    yield from skipped
    images = MediaFolder(task, data, "coco/val2014")

    def make(row: Record) -> Item:
        name, answers = vqa_image(row, "val2014"), partner(row, right, annotations)
        return Item(
            id=row.id("question_id"),
            question=row.text("question"),
            images=(images.image(row, name),),
            references=answers_of(answers),
            category={"answer type": answers.text("answer_type")},
            cluster=name,
        )

    yield from usable(read_vqa_questions(questions, "val2014"), make)


def read_vqa_questions(file: Path, subtype: str) -> Records:
    """Questions of VQA's format, or Qwen's, where each has the path of its image.

    Args:
        subtype: `data_subtype` that the file must have, if it has any.

    Raises:
        EvalDataError: another format or split.
    """
    content = read_any(file)
    if not isinstance(content, dict):
        return content
    if "questions" not in content:
        return as_records([content], file)
    if content.get("data_subtype", subtype) != subtype:
        raise EvalDataError(f"{file}: questions of {content['data_subtype']!r}, expected {subtype!r}")
    return as_records(content["questions"], file)


def vqa_image(row: Record, split: str) -> str:
    """File name of the COCO image that a question is about."""
    if "image" in row.fields:
        return PurePosixPath(row.text("image")).name
    return f"COCO_{split.replace('test-dev', 'test')}_{row.whole('image_id'):012d}.jpg"


def read_vqa_answers(file: Path) -> tuple[dict[str, Record], list[Skipped]]:
    """Annotations of VQA's format by question, and those that cannot be used."""
    return by_id(as_records(read_object(file, "annotations")["annotations"], file), "question_id")


def partner(row: Record, partners: Mapping[str, Record], file: Path, name: str = "question_id") -> Record:
    """The record of `file` that has the same id; RecordError if there is none."""
    if row.id(name) not in partners:
        row.fail(f"{name} {row.id(name)} is not in {file}")
    return partners[row.id(name)]


def answers_of(annotation: Record) -> tuple[str, ...]:
    """The people's answers of an annotation, in order; equal ones stay."""
    rows = annotation["answers"]
    if not isinstance(rows, list) or not rows:
        annotation.fail(f"answers is {rows!r:.60}, expected a list of at least one")
    return tuple(
        text if isinstance(text, str) else annotation.inner("answers", text).text("answer") for text in rows
    )


def caption_items(task: str, data: Path, captions: Path, folder: str) -> Iterator[Item | Skipped]:
    """Images of the test split with people's captions; an item has its image's name, whatever the layout.

    The layouts: Karpathy's file (all splits in one), LAVIS's, or Qwen's and COCO's.

    Raises:
        EvalDataError: another format.
    """
    content = read_any(captions)
    images = MediaFolder(task, data, folder)

    def item(row: Record, path: str, number: Any, captions: tuple[str, ...]) -> Item:
        """LAVIS has no number; it is in the name then, `..._000000391895.jpg`."""
        file = PurePosixPath(path)
        digits = file.stem.rpartition("_")[2] if number is None else str(number)
        if not digits.isdecimal():
            row.fail(f"neither an id nor the file name {file.name} has a number")
        image = images.image(row, file.name)
        return Item(
            id=file.stem, question="", images=(image,), references=captions, extra={"image_id": int(digits)}
        )

    def karpathy(row: Record) -> Item:
        row.one_of("split", ("test",))
        sentences = row["sentences"]
        if not isinstance(sentences, list) or not sentences:
            row.fail(f"sentences is {sentences!r:.60}, expected a list of at least one")
        texts = tuple(row.inner("sentences", sentence).text("raw") for sentence in sentences)
        return item(row, row.text("filename"), row.get("cocoid"), texts)

    def coco(row: Record) -> Item:
        if row.id("id") not in texts:
            row.fail(f"no annotation has the image_id {row.id('id')}")
        name = row.text("image" if "image" in row.fields else "file_name")
        return item(row, name, row["id"], tuple(texts[row.id("id")]))

    if not isinstance(content, dict):
        yield from usable(content, lambda row: item(row, row.text("image"), None, row.texts("caption")))
    elif "images" not in content:
        raise EvalDataError(f"{captions}: expected images in it, there are {', '.join(content)}")
    elif "annotations" not in content:
        rows = as_records(content["images"], captions)
        yield from usable((row for row in rows if _may_be_test(row)), karpathy)
    else:
        texts: dict[str, list[str]] = {}
        rows = as_records(content["annotations"], captions)
        for pair in usable(rows, lambda row: (row.id("image_id"), row.text("caption"))):
            if isinstance(pair, Skipped):
                yield pair
            else:
                texts.setdefault(pair[0], []).append(pair[1])
        yield from usable(as_records(content["images"], captions), coco)


def _may_be_test(row: Record | Skipped) -> bool:
    """Whether a record of Karpathy's file is of the test split, or unusable."""
    return isinstance(row, Skipped) or row.get("split", "test") == "test"


def video_items(
    questions: Path,
    answers: Path | None,
    prefix: str,
    clip: Callable[[Record, str], Path],
) -> Iterator[Item | Skipped]:
    """Questions on clips with one right word: Xu et al.'s file, or Video-ChatGPT's two.

    Args:
        prefix: what comes before `video_id` in the clips' names, as `video` of `video7010`.
        clip: finds the clip of a record by its name without suffix.

    Raises:
        EvalDataError: another format, or no file of answers.
    """
    records = read_records(questions)
    fields = next((record.fields for record in records if isinstance(record, Record)), {})
    right: dict[str, Record] = {}
    if "video_id" not in fields:
        if answers is None:
            raise EvalDataError(f"{questions}: holds no answers; put Video-ChatGPT's test_a.json next to it")
        right, skipped = by_id(read_records(answers), "question_id")
        yield from skipped

    def make(row: Record) -> Item:
        if answers is None or "video_id" in row.fields:
            name, key = f"{prefix}{row.id('video_id')}", "id"
            answer = row
        else:
            name, key = _without_suffix(row.text("video_name")), "question_id"
            answer = partner(row, right, answers)
        question = row.text("question")
        return Item(
            id=row.id(key),
            question=question,
            video=clip(row, name),
            references=(answer.text("answer"),),
            category={"asks": question.split(" ")[0].lower()},
            cluster=name,
        )

    yield from usable(records, make)


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(PurePosixPath(name).name)
    return stem if suffix.lower() in CLIP_SUFFIXES else stem + suffix

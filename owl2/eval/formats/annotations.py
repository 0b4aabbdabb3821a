"""The layouts in which the same benchmark is found: the makers' files, LAVIS's, Qwen's, Video-ChatGPT's.

Papers are evaluated on conversions as often as on the official files, so readers take either and tell them
apart by content. All become the same few records. Whatever is joined (answers to questions, clips to names)
is joined by id, never by position, and what has no partner is counted and said before a model runs.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from owl2.eval.formats.records import Record, as_records, folder_images, read_json, read_jsonl, read_text
from owl2.eval.task import DataMissing, EvalDataError, Item

CLIP_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")


@dataclass(frozen=True)
class Question:
    """A question on an image or clip, before its answers are known."""

    id: str
    text: str
    file: str
    """Name of the image, without folders; of a clip, without suffix."""
    source: Record


@dataclass(frozen=True)
class CaptionedImage:
    """An image and what people wrote below it."""

    file: str
    image_id: int
    """What result files call it."""
    captions: tuple[str, ...]


def read_rows(file: Path) -> list[Record] | dict[str, Any]:
    """Records of a JSON array or of JSON lines; the object, of a file that is one.

    Raises:
        EvalDataError: none of these.
    """
    opening, _, rest = read_text(file).lstrip().partition("\n")
    if opening.startswith("{") and opening.rstrip().endswith("}") and rest.strip():
        return read_jsonl(file)
    value = read_json(file)
    return value if isinstance(value, dict) else as_records(value, file)


def vqa_items(task: str, data: Path, questions: Path, annotations: Path) -> list[Item]:
    """Questions on COCO's val2014 with their answers.

    Raises:
        EvalDataError: another format or split, questions without answers or images.
    """
    asked = read_vqa_questions(questions, "COCO_val2014_{:012d}.jpg", "val2014")
    right = read_vqa_answers(annotations)
    must_have(asked, right, annotations)
    images = folder_images(task, data, "coco/val2014", [question.file for question in asked])
    items = [
        Item(
            id=question.id,
            question=question.text,
            images=(images[question.file],),
            references=answers_of(right[question.id]),
            category={"answer type": right[question.id].text("answer_type")},
            cluster=question.file,
        )
        for question in asked
    ]
    return checked(task, items)


def caption_items(task: str, data: Path, captions: Path, folder: str) -> list[Item]:
    """Images with people's captions; an item is called as its image, whatever the layout.

    Raises:
        EvalDataError: another format, no captions, or images that are not there.
    """
    captioned = read_captions(captions)
    images = folder_images(task, data, folder, [image.file for image in captioned])
    items = [
        Item(
            id=PurePosixPath(image.file).stem,
            question="",
            images=(images[image.file],),
            references=image.captions,
            extra={"image_id": image.image_id},
        )
        for image in captioned
    ]
    return checked(task, items)


def read_vqa_questions(file: Path, image_name: str, subtype: str) -> list[Question]:
    """Questions of VQA's format, or Qwen's, where each has the path of its image.

    Args:
        image_name: file name of an image by its number, as `COCO_val2014_{:012d}.jpg`.
        subtype: `data_subtype` that the file must have, if it has any.

    Raises:
        EvalDataError: another format or split.
    """
    content = read_rows(file)
    if isinstance(content, dict) and "questions" in content:
        if content.get("data_subtype", subtype) != subtype:
            raise EvalDataError(f"{file}: questions of {content['data_subtype']!r}, expected {subtype!r}")
        return [
            Question(text_of(row, "question_id"), row.text("question"), _numbered(image_name, row), row)
            for row in as_records(content["questions"], file)
        ]
    if isinstance(content, dict):
        content = as_records([content], file)
    return [
        Question(
            text_of(row, "question_id"), row.text("question"), PurePosixPath(row.text("image")).name, row
        )
        for row in content
    ]


def read_vqa_answers(file: Path) -> dict[str, Record]:
    """Annotations of VQA's format by question.

    Raises:
        EvalDataError: another format, or two for one question.
    """
    content = read_json(file)
    if not isinstance(content, dict) or "annotations" not in content:
        raise EvalDataError(f"{file}: expected an object with annotations, as VQA's official files")
    return by_id(as_records(content["annotations"], file), "question_id")


def answers_of(annotation: Record) -> tuple[str, ...]:
    """The people's answers of an annotation, in order; equal ones stay."""
    rows = annotation["answers"]
    if not isinstance(rows, list) or not rows:
        raise annotation.error(f"answers is {rows!r:.60}, expected a list of at least one")
    return tuple(text if isinstance(text, str) else _answer(annotation, text) for text in rows)


def read_captions(file: Path) -> list[CaptionedImage]:
    """Captions of the test split: Karpathy's file (all splits in one), LAVIS's, or Qwen's and COCO's.

    Raises:
        EvalDataError: another format, or no captions.
    """
    content = read_rows(file)
    if isinstance(content, dict) and "annotations" in content and "images" in content:
        return _coco_captions(content, file)
    if isinstance(content, dict) and "images" in content:
        rows = as_records(content["images"], file)
        return [_karpathy_captions(row) for row in rows if row["split"] == "test"]
    if isinstance(content, dict):
        raise EvalDataError(f"{file}: expected images in it, there are {', '.join(content)}")
    return [
        CaptionedImage(*_named(row, row.text("image"), None), captions=texts_of(row, "caption"))
        for row in content
    ]


def read_video_questions(questions: Path, answers: Path | None, prefix: str) -> list[tuple[Question, str]]:
    """Questions on clips with their answers: Xu et al.'s file, or Video-ChatGPT's two.

    Args:
        prefix: what stands before `video_id` in the clips' names, as `video` of `video7010`.

    Raises:
        EvalDataError: another format, or questions without answer.
    """
    rows = read_rows(questions)
    if isinstance(rows, dict):
        raise EvalDataError(f"{questions}: expected a list of questions, found an object")
    if rows and "video_id" in rows[0].fields:
        return [
            (
                Question(
                    text_of(row, "id"), row.text("question"), f"{prefix}{text_of(row, 'video_id')}", row
                ),
                row.text("answer"),
            )
            for row in rows
        ]
    if answers is None:
        raise EvalDataError(f"{questions}: holds no answers; put Video-ChatGPT's test_a.json beside it")
    content = read_rows(answers)
    if isinstance(content, dict):
        raise EvalDataError(f"{answers}: expected a list of answers, found an object")
    right = by_id(content, "question_id")
    asked = [
        Question(
            text_of(row, "question_id"),
            row.text("question"),
            _without_suffix(row.text("video_name")),
            row,
        )
        for row in rows
    ]
    must_have(asked, right, answers)
    return [(question, right[question.id].text("answer")) for question in asked]


def folder_clips(
    task: str, data: Path, folder: str, wanted: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], Path]:
    """Clips or GIFs by their possible names without suffix, all of which must be there.

    Raises:
        DataMissing: there is no such folder.
        EvalDataError: some of the clips are not there; says how many.
    """
    if not (data / folder).is_dir():
        raise DataMissing(task, [folder])
    there = {}
    for name in sorted(os.listdir(data / folder)):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in CLIP_SUFFIXES:
            there[stem] = data / folder / name
    wanted = list(dict.fromkeys(wanted))
    found = {}
    for names in wanted:
        present = [there[name] for name in names if name in there]
        if present:
            found[names] = present[0]
    missing = [names for names in wanted if names not in found]
    if missing:
        raise EvalDataError(
            f"{task}: {len(missing):,} of {len(wanted):,} clips are not in {data / folder}, the first is "
            f"{' or '.join(missing[0])} (.mp4, .avi, .webm, .gif, ...); unpack the whole download there"
        )
    return found


def by_id(rows: Iterable[Record], name: str) -> dict[str, Record]:
    """Records by the field that identifies them.

    Raises:
        EvalDataError: two of the same.
    """
    found: dict[str, Record] = {}
    for row in rows:
        key = text_of(row, name)
        if key in found:
            raise row.error(f"{name} {key} again; it is that of {found[key].where}, too")
        found[key] = row
    return found


def must_have(questions: Iterable[Question], partners: Mapping[str, Record], file: Path) -> None:
    """Every question must have its partner.

    Raises:
        EvalDataError: with how many have none.
    """
    questions = list(questions)
    alone = [question.id for question in questions if question.id not in partners]
    if alone:
        raise EvalDataError(
            f"{file}: {len(alone):,} of {len(questions):,} questions are not in it, the first is {alone[0]}; "
            f"is it of another split?"
        )


def checked(task: str, items: list[Item]) -> list[Item]:
    """The items, if there are any and their names are unique.

    Raises:
        EvalDataError: otherwise.
    """
    if not items:
        raise EvalDataError(f"{task}: the files hold no question of this split")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise EvalDataError(f"{task}: two items are called {item.id}; are two splits in one file?")
        seen.add(item.id)
    return items


def text_of(row: Record, name: str) -> str:
    """A name that some files write as text and others as a number."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise row.error(f"{name} is {value!r:.60}, expected text or a whole number")
    return str(value)


def texts_of(row: Record, name: str) -> tuple[str, ...]:
    """A list of text, of at least one."""
    value = row[name]
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise row.error(f"{name} is {value!r:.60}, expected a list of text of at least one")
    return tuple(value)


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(PurePosixPath(name).name)
    return stem if suffix.lower() in CLIP_SUFFIXES else stem + suffix


def _numbered(image_name: str, row: Record) -> str:
    number = row["image_id"]
    if isinstance(number, bool) or not isinstance(number, int):
        raise row.error(f"image_id is {number!r:.60}, expected a whole number")
    return image_name.format(number)


def _answer(annotation: Record, row: Any) -> str:
    if not isinstance(row, dict):
        raise annotation.error(f"answers has {row!r:.60}, expected an object with answer")
    return Record(f"{annotation.where}: answers", row).text("answer")


def _karpathy_captions(row: Record) -> CaptionedImage:
    sentences = row["sentences"]
    if not isinstance(sentences, list) or not sentences:
        raise row.error(f"sentences is {sentences!r:.60}, expected a list of at least one")
    captions = tuple(Record(f"{row.where}: sentences", sentence).text("raw") for sentence in sentences)
    return CaptionedImage(*_named(row, row.text("filename"), row.get("cocoid")), captions=captions)


def _coco_captions(content: Mapping[str, Any], file: Path) -> list[CaptionedImage]:
    captions: dict[str, list[str]] = {}
    for row in as_records(content["annotations"], file):
        captions.setdefault(text_of(row, "image_id"), []).append(row.text("caption"))
    found = []
    for row in as_records(content["images"], file):
        number = text_of(row, "id")
        if number not in captions:
            raise row.error(f"no annotation has the image_id {number}")
        name = row.text("image" if "image" in row.fields else "file_name")
        found.append(CaptionedImage(*_named(row, name, row["id"]), captions=tuple(captions[number])))
    return found


def _named(row: Record, path: str, number: Any) -> tuple[str, int]:
    """File name and number of an image; LAVIS takes the number from the name, `..._000000391895.jpg`."""
    file = PurePosixPath(path)
    digits = file.stem.rpartition("_")[2] if number is None else str(number)
    if not digits.isdecimal():
        raise row.error(f"neither an id nor the file name {file.name} has a number")
    return file.name, int(digits)

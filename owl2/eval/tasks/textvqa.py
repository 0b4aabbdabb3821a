"""TextVQA: questions on photographs that need the text in them (Singh et al. 2019).

The paper prints two figures, 54.3 and 58.2; as with LLaVA-1.5, the second has the words of an OCR system
(Rosetta) in the prompt. They are two tasks over the same items, so that each stands beside its own figure:
`textvqa`, and `textvqa_ocr`, which also needs the file of OCR tokens. The authors published the prompt of the
first only (evaluate_vqa.py); the line of tokens is LLaVA's. LLaVA's own question file has other OCR tokens
than Rosetta's v0.2, so its 58.2 is not reproduced to the digit.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import Question, answers_of, checked, must_have, text_of, texts_of
from owl2.eval.formats.records import Record, as_records, folder_images, read_json
from owl2.eval.task import DataFile, EvalDataError, Item, Template, task
from owl2.eval.tasks.base import SHORT_ANSWER_TEMPLATES, VqaTask
from owl2.eval.tasks.prompts import SHORT, by_analogy, turn
from owl2.processor.template import Message

SOURCE = "https://textvqa.org/dataset/"
LICENCE = "CC BY 4.0"
QUESTIONS = DataFile("textvqa/TextVQA_0.5.1_val.json", SOURCE, LICENCE)
IMAGES = DataFile("textvqa/train_images", f"{SOURCE} (train_val_images.zip)", LICENCE)
OCR = DataFile("textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", SOURCE, LICENCE)


def with_tokens(item: Item) -> list[Message]:
    """Question, `Reference OCR token: ` with the tokens between commas, the short-answer sentence."""
    return turn(item, f"{item.question}\n{_tokens(item)}\n{SHORT}")


def _capitalised(item: Item) -> list[Message]:
    return turn(item, f"{item.question.capitalize()}\n{SHORT}")


def _capitalised_with_tokens(item: Item) -> list[Message]:
    return turn(item, f"{item.question.capitalize()}\n{_tokens(item)}\n{SHORT}")


def _tokens(item: Item) -> str:
    return f"Reference OCR token: {', '.join(item.extra['ocr_tokens'])}"


@task
class TextVqa(VqaTask):
    """Validation split, the image alone."""

    name = "textvqa"
    title = "TextVQA val"
    files: ClassVar[tuple[DataFile, ...]] = (QUESTIONS, IMAGES)
    templates: ClassVar[dict[str, Template]] = {
        **SHORT_ANSWER_TEMPLATES,
        "lmms-eval": Template("lmms-eval 0.7.2", _capitalised),
    }
    expected = (5_000,)
    paper_id = "1/6"

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        questions = _read(found[QUESTIONS.path])
        images = folder_images(self.name, data, IMAGES.path, [question.file for question in questions])
        tokens = _read_tokens(found[OCR.path], questions) if OCR.path in found else {}
        items = [
            Item(
                id=question.id,
                question=question.text,
                images=(images[question.file],),
                references=answers_of(question.source),
                cluster=question.file,
                extra={"ocr_tokens": tokens[question.file]} if tokens else {},
            )
            for question in questions
        ]
        return checked(self.name, items)


@task
class TextVqaOcr(TextVqa):
    """Validation split, with OCR tokens in the prompt."""

    name = "textvqa_ocr"
    title = "TextVQA val, OCR tokens"
    files = (QUESTIONS, IMAGES, OCR)
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": by_analogy(with_tokens, "evaluate_vqa.py and LLaVA-1.5"),
        "llava15": Template("LLaVA-1.5", with_tokens),
        "lmms-eval": Template("lmms-eval 0.7.2, `ocr: true`", _capitalised_with_tokens),
    }
    paper_id = "1/7"


def _read(file: Path) -> list[Question]:
    content = read_json(file)
    if not isinstance(content, dict) or "data" not in content:
        raise EvalDataError(f"{file}: expected an object with data, as TextVQA's official files")
    if content.get("dataset_type", "val") != "val":
        raise EvalDataError(f"{file}: questions of {content['dataset_type']!r}, expected 'val'")
    return [
        Question(text_of(row, "question_id"), row.text("question"), f"{row.text('image_id')}.jpg", row)
        for row in as_records(content["data"], file)
    ]


def _read_tokens(file: Path, questions: list[Question]) -> dict[str, tuple[str, ...]]:
    """OCR tokens by image; an image may have none, but must be in the file."""
    content = read_json(file)
    if not isinstance(content, dict) or "data" not in content:
        raise EvalDataError(f"{file}: expected an object with data, as Rosetta's official files")
    rows: dict[str, Record] = {
        f"{row.text('image_id')}.jpg": row for row in as_records(content["data"], file)
    }
    must_have([dataclasses.replace(question, id=question.file) for question in questions], rows, file)
    return {name: texts_of(row, "ocr_tokens") if row["ocr_tokens"] else () for name, row in rows.items()}

"""TextVQA: questions on photographs that need the text in them (Singh et al. 2019).

The paper prints two figures, 54.3 and 58.2; as with LLaVA-1.5, the second has the words of an OCR system
(Rosetta) in the prompt. They are two tasks over the same items, each compared with its own figure: `textvqa`,
and `textvqa_ocr`, which also needs the file of OCR tokens. The authors published the prompt of the first only
(evaluate_vqa.py); the line of tokens is LLaVA's. LLaVA's own question file has other OCR tokens than
Rosetta's v0.2, so its 58.2 is not reproduced to the digit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import answers_of, partner
from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, as_records, by_id, read_object, usable
from owl2.eval.task import DataFile, EvalDataError, Item, Skipped, Template, task
from owl2.eval.tasks.base import VqaTask
from owl2.eval.tasks.prompts import SHORT, VQA, by_analogy, turn
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
        **VqaTask.templates,
        "lmms-eval": Template("lmms-eval 0.7.2", _capitalised),
    }
    expected = (5_000,)
    paper_id = "1/6"

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        content = read_object(found[QUESTIONS.path], "data")
        if content.get("dataset_type", "val") != "val":
            raise EvalDataError(
                f"{found[QUESTIONS.path]}: questions of {content['dataset_type']!r}, expected 'val'"
            )
        images = MediaFolder(self.name, data, IMAGES.path)
        ocr = found.get(OCR.path)
        tokens: dict[str, Record] = {}
        if ocr is not None:
            tokens, skipped = by_id(as_records(read_object(ocr, "data")["data"], ocr), "image_id")
            yield from skipped

        def make(row: Record) -> Item:
            name = f"{row.text('image_id')}.jpg"
            return Item(
                id=row.id("question_id"),
                question=row.text("question"),
                images=(images.image(row, name),),
                references=answers_of(row),
                cluster=name,
                extra={"ocr_tokens": _tokens_of(row, tokens, ocr)} if ocr is not None else {},
            )

        yield from usable(as_records(content["data"], found[QUESTIONS.path]), make)


@task
class TextVqaOcr(TextVqa):
    """Validation split, with OCR tokens in the prompt."""

    name = "textvqa_ocr"
    title = "TextVQA val, OCR tokens"
    files = (QUESTIONS, IMAGES, OCR)
    templates: ClassVar[dict[str, Template]] = {
        **by_analogy(VQA, "by analogy with evaluate_vqa.py and LLaVA-1.5", with_tokens),
        "llava15": Template("LLaVA-1.5", with_tokens),
        "lmms-eval": Template("lmms-eval 0.7.2, `ocr: true`", _capitalised_with_tokens),
    }
    paper_id = "1/7"


def _tokens_of(row: Record, tokens: dict[str, Record], file: Path) -> tuple[str, ...]:
    """An image may have no tokens, but it must be in the file."""
    words = partner(row, tokens, file, "image_id")
    return words.texts("ocr_tokens") if words["ocr_tokens"] else ()

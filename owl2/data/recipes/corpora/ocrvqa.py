"""OCR-VQA (Mishra et al. 2019): questions on book covers, all of a cover in one conversation.

Covers are fetched one by one and named by key with the suffix of their address, or `.jpg` in all cases as in
LLaVA's instructions; both are found. Many addresses no longer work: those covers are counted as missing.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from owl2.data.recipes.recipe import (
    ConversationRecipe,
    CorpusFile,
    Files,
    Rejected,
    Row,
    read_records,
    recipe,
)
from owl2.data.recipes.wording import conversation, short_question

TRAIN = 1
"""`split` of a record: 1 train, 2 validation, 3 test."""


@recipe
class OcrVqa(ConversationRecipe):
    name = "ocrvqa"
    title = "OCR-VQA"
    stage = "instruct"
    in_paper = True
    licence = "research use; covers: their publishers"
    size = "about 166,000 covers with five questions each (split 1)"
    weight = 80
    files = (
        CorpusFile("dataset.json", "ocr-vqa.github.io"),
        CorpusFile("images", "ocr-vqa.github.io, loadDataset.py fetches them"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        def read(key: str, record: dict[str, Any]) -> Row | None:
            if record["split"] != TRAIN:
                return None
            pairs = zip(record["questions"], record["answers"], strict=True)
            exchanges = [(short_question(question), answer) for question, answer in pairs]
            return conversation(key, _cover(files, key, record["imageURL"]), exchanges)

        yield from read_records("cover", files.read_json("dataset.json"), read)


def _cover(files: Files, key: str, address: str) -> str:
    name = key + PurePosixPath(address).suffix
    return files.name_of("images", name if (files["images"] / name).exists() else f"{key}.jpg")

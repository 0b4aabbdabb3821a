"""The corpus: the same kind of questions to train on, one conversation an image."""

from collections.abc import Iterator
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


@recipe
class Dots(ConversationRecipe):
    """How many dots?"""

    name = "dots"
    title = "Dots"
    stage = "instruct"
    licence = "CC0"
    size = "12 questions on 12 images"
    weight = 1
    files = (
        CorpusFile("train.json", "python -m owl2_dots.draw"),
        CorpusFile("images", "python -m owl2_dots.draw"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        def row(key: str, record: dict[str, Any]) -> Row:
            exchange = (short_question(record["question"]), record["answer"])
            return conversation(str(record["id"]), files.name_of("images", record["image"]), [exchange])

        yield from read_records("question", files.read_json("train.json"), row)

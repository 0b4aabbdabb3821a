"""GQA (Hudson and Manning 2019): the balanced questions of an image in one conversation, short answers."""

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
from owl2.data.recipes.wording import Exchange, conversation, short_question


@recipe
class Gqa(ConversationRecipe):
    name = "gqa"
    title = "GQA"
    stage = "instruct"
    in_paper = True
    licence = "CC BY 4.0; images: Visual Genome (CC BY 4.0)"
    size = "943,000 questions on 72,140 images (train_balanced)"
    weight = 72
    files = (
        CorpusFile("train_balanced_questions.json", "cs.stanford.edu/people/dorarad/gqa, questions1.2.zip"),
        CorpusFile("images", "cs.stanford.edu/people/dorarad/gqa, images.zip"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        by_image: dict[str, list[Exchange]] = {}

        def collect(key: str, record: dict[str, Any]) -> None:
            exchange = (short_question(record["question"]), record["answer"])
            by_image.setdefault(record["imageId"], []).append(exchange)

        questions = files.read_json("train_balanced_questions.json", _slim)
        yield from read_records("question", questions, collect)
        for image_id, exchanges in by_image.items():
            yield conversation(image_id, files.name_of("images", f"{image_id}.jpg"), exchanges)


def _slim(value: dict[str, Any]) -> dict[str, Any]:
    """Keep three of a question's thirteen fields: most of the file's gigabyte are functional programs."""
    if "imageId" not in value:
        return value
    return {name: value[name] for name in ("question", "imageId", "answer") if name in value}

"""LLaVA-Instruct-158K (Liu et al. 2023): GPT-4's conversations, descriptions and reasoning on COCO images.

The text is as published, but the image's mark moves directly before the first question, where the release
puts it at inference (the file has it before or after, on a line of its own).
"""

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
from owl2.data.recipes.wording import IMAGE


@recipe
class Llava158k(ConversationRecipe):
    name = "llava_158k"
    title = "LLaVA-Instruct-158K"
    stage = "instruct"
    in_paper = True
    licence = "CC BY 4.0, and OpenAI's terms of use; images: terms of Flickr"
    size = "157,712 conversations on COCO train2017"
    weight = 158
    files = (
        CorpusFile("llava_instruct_150k.json", "huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"),
        CorpusFile("train2017", "cocodataset.org, 2017 Train images (train2017.zip)", folder="coco"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        def read(number: str, record: dict[str, Any]) -> Row:
            first, *others = record["conversations"]
            question = IMAGE + first["value"].replace(IMAGE, "", 1).strip()
            return {
                "id": f"{record['id']}-{number}",  # one image has up to three records
                "image": files.name_of("train2017", record["image"]),
                "conversations": [{"from": first["from"], "value": question}, *others],
            }

        yield from read_records("record", files.read_json("llava_instruct_150k.json"), read)

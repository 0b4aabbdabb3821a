"""TextCaps (Sidorov et al. 2020): captions that read the text in an image, one random caption an image.

The official file has one record a caption; records of one image share `image_id`. Appendix B.1 as for COCO.
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
from owl2.data.recipes.wording import CAPTION, conversation, seeded


@recipe
class TextCaps(ConversationRecipe):
    name = "textcaps"
    title = "TextCaps"
    stage = "instruct"
    in_paper = True
    licence = "CC BY 4.0; images: Open Images (CC BY 2.0)"
    size = "109,765 captions of 21,953 images (train)"
    weight = 22
    files = (
        CorpusFile("TextCaps_0.1_train.json", "textvqa.org/textcaps/dataset, Training set"),
        CorpusFile("train_images", "textvqa.org/textcaps/dataset, train_val_images.zip"),
    )

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        captions: dict[str, list[str]] = {}

        def collect(key: str, record: dict[str, Any]) -> None:
            captions.setdefault(record["image_id"], []).append(record["caption_str"])

        yield from read_records("caption", files.read_json("TextCaps_0.1_train.json")["data"], collect)
        for image_id, texts in captions.items():
            caption = seeded(self.name, image_id).choice(texts)
            yield conversation(
                image_id, files.name_of("train_images", f"{image_id}.jpg"), [(CAPTION, caption)]
            )

"""COCO captions for pre-training (Lin et al. 2014): every caption of every image.

The question is the image alone, the answer its caption. From img2dataset's shards (`mscoco`), as the other
pre-training corpora; or from the official download, where five captions share an image and become five rows,
so that no image is stored twice.
"""

from collections.abc import Iterator
from pathlib import Path

from owl2.data.recipes.corpora.coco import CAPTIONS, captions_by_image
from owl2.data.recipes.corpora.vqav2 import TRAIN2014
from owl2.data.recipes.img2dataset import SHARDS, ShardRecipe, shard_files
from owl2.data.recipes.recipe import ConversationRecipe, Files, Recipe, Rejected, Row, recipe
from owl2.data.recipes.wording import conversation


@recipe
class CocoCaptions(ShardRecipe):
    name = "coco_captions"
    title = "COCO captions"
    in_paper = True
    licence = "annotations CC BY 4.0; images: terms of Flickr"
    size = "414,113 captions of 82,783 images (train2014)"
    weight = 0.6
    files = shard_files("huggingface.co/datasets/ChristophSchuhmann/MS_COCO_2017_URL_TEXT")

    def at(self, source: Path) -> Recipe:
        return self if SHARDS in self.locate(source)[0] else OfficialCocoCaptions()


class OfficialCocoCaptions(ConversationRecipe):
    """The same corpus from COCO's own files."""

    name = CocoCaptions.name
    title = CocoCaptions.title
    stage = CocoCaptions.stage
    licence = CocoCaptions.licence
    size = CocoCaptions.size
    weight = CocoCaptions.weight
    augment = CocoCaptions.augment
    files = (CAPTIONS, TRAIN2014)

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        for image_id, file_name, captions in captions_by_image(files):
            image = files.name_of("train2014", file_name)
            for number, caption in enumerate(captions):
                yield conversation(f"{image_id}-{number}", image, [("", caption)])

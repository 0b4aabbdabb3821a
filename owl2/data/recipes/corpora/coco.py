"""COCO captions for instruction tuning (Lin et al. 2014): one random caption an image.

Appendix B.1: "we randomly select one caption from the ground truth". The 82,783 images of train2014 are the
82K of Table 14.
"""

from collections import defaultdict
from collections.abc import Iterator

from owl2.data.recipes.corpora.vqav2 import TRAIN2014
from owl2.data.recipes.recipe import ConversationRecipe, CorpusFile, Files, Rejected, Row, recipe
from owl2.data.recipes.wording import CAPTION, conversation, seeded

CAPTIONS = CorpusFile(
    "annotations/captions_train2014.json",
    "cocodataset.org, 2014 Train/Val annotations (annotations_trainval2014.zip)",
    folder="coco",
)


@recipe
class Coco(ConversationRecipe):
    name = "coco"
    title = "COCO captions"
    stage = "instruct"
    in_paper = True
    licence = "annotations CC BY 4.0; images: terms of Flickr"
    size = "414,113 captions of 82,783 images (train2014)"
    weight = 82
    files = (CAPTIONS, TRAIN2014)

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        for image_id, file_name, captions in captions_by_image(files):
            if not captions:
                yield Rejected(str(image_id), "image without a caption")
                continue
            caption = seeded(self.name, str(image_id)).choice(captions)
            image = files.name_of("train2014", file_name)
            yield conversation(str(image_id), image, [(CAPTION, caption)])


def captions_by_image(files: Files) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (id, file name, captions) of each image, in the order of the file."""
    data = files.read_json(CAPTIONS.path)
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in data["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    for image in data["images"]:
        yield image["id"], image["file_name"], captions.get(image["id"], [])

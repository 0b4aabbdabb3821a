"""COCO captions: one sentence on each of the 5,000 images of Karpathy's test split.

Three layouts are read: Karpathy's dataset_coco.json with all splits (its fields are from memory, not from a
source), LAVIS's coco_karpathy_test.json, and COCO's or Qwen's annotations of these images. All images are of
val2014. The authors published the prompt with Flickr30K's script and fine-tuned on COCO, so this figure is
not zero-shot. CIDEr's words come from our own tokeniser in place of Stanford's (see `metrics/ptb.py`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import caption_items
from owl2.eval.formats.records import official
from owl2.eval.task import DataFile, Item, Skipped, Template, task
from owl2.eval.tasks.base import CaptionTask
from owl2.eval.tasks.prompts import turn

LICENCE = "CC BY 4.0 (annotations), Flickr terms (images)"


@task
class CocoCaption(CaptionTask):
    """Karpathy's test split."""

    name = "coco_caption"
    title = "COCO captions, Karpathy test"
    files = (
        DataFile(
            "coco/dataset_coco.json",
            "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
            LICENCE,
        ),
        DataFile(
            "coco/coco_karpathy_test.json",
            "https://storage.googleapis.com/sfr-vision-language-research/datasets/coco_karpathy_test.json",
            LICENCE,
            is_required=False,
            instead_of="coco/dataset_coco.json",
        ),
        DataFile("coco/val2014", "http://images.cocodataset.org/zips/val2014.zip", LICENCE),
    )
    templates: ClassVar[dict[str, Template]] = {
        **CaptionTask.templates,
        "lmms-eval-karpathy": Template(
            "lmms-eval 0.7.2, coco_karpathy", lambda item: turn(item, "Describe the image briefly.")
        ),
    }
    expected = (5_000,)
    paper_id = "1/0"

    def read(self, data: Path) -> Iterable[Item | Skipped]:
        file = official(self.find(data), self.files, "coco/dataset_coco.json")
        return caption_items(self.name, data, file, "coco/val2014")

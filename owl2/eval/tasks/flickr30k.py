"""Flickr30K captions: one sentence on each of the 1,000 images of Karpathy's test split (Young et al. 2014).

Three layouts are read: Qwen's flickr30k_karpathy_test.json, which the authors used, Karpathy's
dataset_flickr30k.json with all splits (its fields are from memory, not from a source), and LAVIS's
flickr30k_test.json. Only the name of an image counts, not the folders before it. CIDEr's words come from our
own tokeniser in place of Stanford's (see `metrics/ptb.py`).
"""

from collections.abc import Iterable
from pathlib import Path

from owl2.eval.formats.annotations import caption_items
from owl2.eval.formats.records import official
from owl2.eval.task import DataFile, Item, Skipped, task
from owl2.eval.tasks.base import CaptionTask, qwen_file

LICENCE = "Flickr terms; research only"
KARPATHY = "flickr30k/dataset_flickr30k.json"


@task
class Flickr30k(CaptionTask):
    """Karpathy's test split."""

    name = "flickr30k"
    title = "Flickr30K captions, Karpathy test"
    files = (
        DataFile(
            KARPATHY, "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip", LICENCE
        ),
        qwen_file("flickr30k/flickr30k_karpathy_test.json", KARPATHY, LICENCE),
        DataFile(
            "flickr30k/flickr30k_test.json",
            "https://storage.googleapis.com/sfr-vision-language-research/datasets/flickr30k_test.json",
            LICENCE,
            is_required=False,
            instead_of=KARPATHY,
        ),
        DataFile(
            "flickr30k/flickr30k-images", "https://bryanplummer.com/Flickr30kEntities/ (a form)", LICENCE
        ),
    )
    expected = (1_000,)
    paper_id = "1/1"

    def read(self, data: Path) -> Iterable[Item | Skipped]:
        file = official(self.find(data), self.files, KARPATHY)
        return caption_items(self.name, data, file, "flickr30k/flickr30k-images")

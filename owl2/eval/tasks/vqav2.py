"""VQAv2: 1.1 million open questions on COCO's photographs (Goyal et al. 2017).

The paper prints test-dev, whose answers only the server has (EvalAI challenge 830; it wants all of test2015,
447,793 answers, to score test-dev). So there are two tasks: `vqav2` scores the validation split, which is
usually 1 to 2 points away from the paper's figure next to it; `vqav2_test` makes answers to submit. Both read
the official files or Qwen's lines, which the authors used; answers come from the official annotations.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import read_vqa_questions, vqa_image, vqa_items
from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, official, usable
from owl2.eval.task import DataFile, Item, Skipped, task
from owl2.eval.tasks.base import VqaTask, qwen_file

SOURCE = "https://visualqa.org/download.html"
LICENCE = "CC BY 4.0 (annotations), Flickr terms (images)"


@task
class VqaV2(VqaTask):
    """Validation split, scored."""

    name = "vqav2"
    title = "VQAv2 val"
    files = (
        DataFile("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", SOURCE, LICENCE),
        qwen_file("vqav2/vqav2_val.jsonl", "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", LICENCE),
        DataFile("vqav2/v2_mscoco_val2014_annotations.json", SOURCE, LICENCE),
        DataFile("coco/val2014", "http://images.cocodataset.org/zips/val2014.zip", LICENCE),
    )
    expected = (214_354,)
    paper_id = "1/2"

    def read(self, data: Path) -> Iterable[Item | Skipped]:
        found = self.find(data)
        file = official(found, self.files, "vqav2/v2_OpenEnded_mscoco_val2014_questions.json")
        return vqa_items(self.name, data, file, found["vqav2/v2_mscoco_val2014_annotations.json"])


@task
class VqaV2Test(VqaTask):
    """Test split, for the server: no figures here."""

    name = "vqav2_test"
    title = "VQAv2 test-dev (to submit)"
    files = (
        DataFile("vqav2/v2_OpenEnded_mscoco_test2015_questions.json", SOURCE, LICENCE),
        DataFile(
            "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json",
            SOURCE,
            LICENCE,
            is_required=False,
            instead_of="vqav2/v2_OpenEnded_mscoco_test2015_questions.json",
        ),
        qwen_file("vqav2/vqav2_testdev.jsonl", "vqav2/v2_OpenEnded_mscoco_test2015_questions.json", LICENCE),
        DataFile("coco/test2015", "http://images.cocodataset.org/zips/test2015.zip", LICENCE),
    )
    expected = (447_793, 107_394)
    paper_id = "1/2"
    subtypes: ClassVar[dict[str, str]] = {
        "vqav2/v2_OpenEnded_mscoco_test2015_questions.json": "test2015",
        "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json": "test-dev2015",
        "vqav2/vqav2_testdev.jsonl": "test-dev2015",
    }
    """All of test2015 before test-dev alone, which the server does not take."""

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        path = next(path for path in self.subtypes if path in found)
        images = MediaFolder(self.name, data, "coco/test2015")

        def make(row: Record) -> Item:
            name = vqa_image(row, "test2015")
            return Item(row.id("question_id"), row.text("question"), (images.image(row, name),), cluster=name)

        yield from usable(read_vqa_questions(found[path], self.subtypes[path]), make)

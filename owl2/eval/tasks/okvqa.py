"""OK-VQA: questions on COCO's photographs that need knowledge from outside (Marino et al. 2019).

VQA's format; `answer` is a stemmed form (`raw_answer` is what people wrote) of five people's answers, each
twice (from memory of the files, not from a source). Like the authors' script, `answer` is compared as it is,
without a lemmatiser for the prediction. Table 16 says val; the 5,046 questions of val2014 are its only public
evaluation split. lmms-eval's wording has VizWiz's sentence by mistake, and so it has here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import vqa_items
from owl2.eval.formats.records import official
from owl2.eval.task import DataFile, Item, Skipped, Template, task
from owl2.eval.tasks.base import VqaTask, qwen_file
from owl2.eval.tasks.prompts import short_or_unanswerable

SOURCE = "https://okvqa.allenai.org/download.html"
LICENCE = "CC BY 4.0 (annotations), Flickr terms (images)"


@task
class OkVqa(VqaTask):
    """Validation split."""

    name = "okvqa"
    title = "OK-VQA val"
    files = (
        DataFile("okvqa/OpenEnded_mscoco_val2014_questions.json", SOURCE, LICENCE),
        qwen_file("okvqa/okvqa_val.jsonl", "okvqa/OpenEnded_mscoco_val2014_questions.json", LICENCE),
        DataFile("okvqa/mscoco_val2014_annotations.json", SOURCE, LICENCE),
        DataFile("coco/val2014", "http://images.cocodataset.org/zips/val2014.zip", LICENCE),
    )
    templates: ClassVar[dict[str, Template]] = {
        **VqaTask.templates,
        "lmms-eval": Template("lmms-eval 0.7.2", short_or_unanswerable),
    }
    expected = (5_046,)
    paper_id = "1/3"

    def read(self, data: Path) -> Iterable[Item | Skipped]:
        found = self.find(data)
        file = official(found, self.files, "okvqa/OpenEnded_mscoco_val2014_questions.json")
        return vqa_items(self.name, data, file, found["okvqa/mscoco_val2014_annotations.json"])

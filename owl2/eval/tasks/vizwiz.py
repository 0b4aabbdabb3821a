"""VizWiz-VQA: questions that blind people asked on photographs they took (Gurari et al. 2018).

The paper prints test-dev, whose answers only the server has (EvalAI challenge 2185). `vizwiz` scores the
validation split and stands beside the paper's figure; `vizwiz_test` makes answers to submit. "unanswerable"
is an answer like any other. Answers carry no `answer_id`, so evaluators that compare records lose equal ones;
ours does not. The authors never published their prompt; LLaVA-1.5 tells the model when to give up. That
test.json has image and question only is [from memory, not from a source].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import answers_of, checked
from owl2.eval.formats.records import Record, as_records, folder_images, read_json
from owl2.eval.metrics.vqa import Variant, normalise
from owl2.eval.scoring.averages import mean
from owl2.eval.task import Answer, DataFile, EvalDataError, Item, Score, Template, task
from owl2.eval.tasks.base import UNPUBLISHED_SHORT_ANSWER_TEMPLATES, VqaTask
from owl2.eval.tasks.prompts import short_or_unanswerable

SOURCE = "https://vizwiz.org/tasks-and-datasets/vqa/"
LICENCE = "CC BY 4.0"
UNANSWERABLE = "unanswerable"


class VizWizTask(VqaTask):
    """What both splits share."""

    templates: ClassVar[dict[str, Template]] = {
        **UNPUBLISHED_SHORT_ANSWER_TEMPLATES,
        "llava15": Template("LLaVA-1.5", short_or_unanswerable),
        "lmms-eval": Template("lmms-eval 0.7.2", short_or_unanswerable),
    }
    variants: ClassVar[tuple[Variant, ...]] = ("evalai", "lavis", "official")
    """The server's first."""
    paper_id = "1/5"
    split: ClassVar[str]

    def items(self, data: Path) -> list[Item]:
        file = self.find(data)[f"vizwiz/{self.split}.json"]
        rows = as_records(read_json(file), file)
        for row in rows:
            if not row.text("image").startswith(f"VizWiz_{self.split}_"):
                raise EvalDataError(f"{row.where}: image is {row.text('image')!r}, not of {self.split}")
        images = folder_images(self.name, data, f"vizwiz/{self.split}", [row.text("image") for row in rows])
        items = [
            Item(
                id=row.text("image"),
                question=row.text("question"),
                images=(images[row.text("image")],),
                references=self.references(row),
                category={"answer type": row.text("answer_type")} if "answer_type" in row.fields else {},
            )
            for row in rows
        ]
        return checked(self.name, items)

    def references(self, row: Record) -> tuple[str, ...]:
        """The people's answers; the test split keeps them secret."""
        return ()


@task
class VizWiz(VizWizTask):
    """Validation split, scored."""

    name = "vizwiz"
    title = "VizWiz val"
    files = (
        DataFile("vizwiz/val.json", SOURCE, LICENCE),
        DataFile("vizwiz/val", SOURCE, LICENCE),
    )
    expected = (4_319,)
    split = "val"

    def references(self, row: Record) -> tuple[str, ...]:
        return answers_of(row)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """VQA accuracy, then how well it is told what has no answer.

        Of what the model calls unanswerable, the share that is (precision); of what is, the share it calls so
        (recall). What is, is the `answer_type` of the file.
        """
        scores = super().score(answers)
        is_so = [answer.item.category.get("answer type") == UNANSWERABLE for answer in answers]
        says_so = [normalise(answer.parsed or "", "evalai") == UNANSWERABLE for answer in answers]
        for metric, chosen, counted in (("precision", says_so, is_so), ("recall", is_so, says_so)):
            kept = [index for index, keep in enumerate(chosen) if keep]
            if kept:
                values = [float(counted[index]) for index in kept]
                scores.append(mean(f"unanswerable: {metric}", [answers[index] for index in kept], values))
        return scores


@task
class VizWizTest(VizWizTask):
    """Test split, for the server: no figures here."""

    name = "vizwiz_test"
    title = "VizWiz test-dev (to submit)"
    files = (
        DataFile("vizwiz/test.json", SOURCE, LICENCE),
        DataFile("vizwiz/test", SOURCE, LICENCE),
    )
    expected = (8_000,)
    split = "test"

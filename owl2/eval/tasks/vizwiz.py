"""VizWiz-VQA: questions that blind people asked on photographs they took (Gurari et al. 2018).

The paper prints test-dev, whose answers only the server has (EvalAI challenge 2185). `vizwiz` scores the
validation split next to the paper's figure; `vizwiz_test` makes answers to submit. "unanswerable" is an
answer like any other. Answers have no `answer_id`, so evaluators that compare records lose equal ones; ours
does not. The authors never published their prompt; LLaVA-1.5 tells the model when to give up. That test.json
has image and question only is from memory, not from a source.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import answers_of
from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, read_records, usable
from owl2.eval.metrics.averages import mean
from owl2.eval.metrics.vqa import Variant, normalise
from owl2.eval.task import Answer, DataFile, Item, Score, Skipped, Template, task
from owl2.eval.tasks.base import UNPUBLISHED_VQA, VqaTask
from owl2.eval.tasks.prompts import short_or_unanswerable

SOURCE = "https://vizwiz.org/tasks-and-datasets/vqa/"
LICENCE = "CC BY 4.0"
UNANSWERABLE = "unanswerable"


class VizWizTask(VqaTask):
    """Base of both splits."""

    templates: ClassVar[dict[str, Template]] = {
        **UNPUBLISHED_VQA,
        "llava15": Template("LLaVA-1.5", short_or_unanswerable),
        "lmms-eval": Template("lmms-eval 0.7.2", short_or_unanswerable),
    }
    variants: ClassVar[tuple[Variant, ...]] = ("evalai", "lavis", "official")
    """The server's first."""
    paper_id = "1/5"
    split: ClassVar[str]

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        file = self.find(data)[f"vizwiz/{self.split}.json"]
        images = MediaFolder(self.name, data, f"vizwiz/{self.split}")

        def make(row: Record) -> Item:
            name = row.text("image")
            if not name.startswith(f"VizWiz_{self.split}_"):
                row.fail(f"image is {name!r}, not of {self.split}")
            return Item(
                id=name,
                question=row.text("question"),
                images=(images.image(row, name),),
                references=self.references(row),
                category={"answer type": row.text("answer_type")} if "answer_type" in row.fields else {},
            )

        yield from usable(read_records(file), make)

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
        """VQA accuracy, then how well unanswerable questions are recognised.

        Precision: of the questions the model calls unanswerable, the share that is. Recall: of the questions
        that are, the share the model calls so. The file's `answer_type` says which are.
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

"""POPE: is this object in the image? Yes-or-no questions on COCO in three splits (Table 9).

The paper's "random" has 2910 questions: only that number gives its figures from integers. The file was
replaced by one of 3000 in October 2023; both are read, and N is printed with the figure. The authors
published no prompt for POPE; the one of MME, the other yes-or-no benchmark, is used. The official reading
takes any answer without "no" or "not" in its first sentence for a yes; an answer with neither word is scored
so, and counted as unparsed.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, official, read_records, usable
from owl2.eval.metrics.averages import mean
from owl2.eval.metrics.yes_no import binary_scores, pope_answer
from owl2.eval.task import Answer, DataFile, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import QUESTION_ALONE, SHORT_ANSWER, by_analogy, released, short_answer_below

SPLITS = ("random", "popular", "adversarial")
PAPER_ROWS = {"random": 117, "popular": 122, "adversarial": 127}
"""Row of each split's accuracy; precision, recall, F1 and the share of yes follow it."""
SOURCE = "https://github.com/RUCAIBox/POPE, output/coco; 2910: LLaVA-RLHF, Eval/pope/coco_pope_random.jsonl"
IMAGES = "coco/val2014"


def _files(split: str) -> list[DataFile]:
    """Places and names a split's questions have in the downloads."""
    first, *others = (
        f"pope/output/coco/coco_pope_{split}.json",
        f"pope/coco/coco_pope_{split}.json",
        f"pope/coco_pope_{split}.jsonl",
    )
    replacements = [DataFile(path, SOURCE, "MIT", is_required=False, instead_of=first) for path in others]
    return [DataFile(first, SOURCE, "MIT"), *replacements]


@task
class Pope(Task):
    name = "pope"
    title = "POPE"
    files = (
        *(file for split in SPLITS for file in _files(split)),
        DataFile(IMAGES, "http://images.cocodataset.org/zips/val2014.zip", "Flickr terms of use"),
    )
    templates: ClassVar[dict[str, Template]] = {
        **by_analogy(
            released("evaluate_mme.py", short_answer_below, SHORT_ANSWER), "by analogy with evaluate_mme.py"
        ),
        "question": QUESTION_ALONE,
        "llava15": Template("LLaVA, llava_pope_test.jsonl", short_answer_below),
        "lmms-eval": Template("lmms-eval 0.7.3, pope.yaml", short_answer_below),
    }
    decoding = SHORT_ANSWER
    expected = (8910, 9000)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        images = MediaFolder(self.name, data, IMAGES)
        for split in SPLITS:
            records = read_records(official(found, self.files, _files(split)[0].path))
            yield from usable(records, partial(_item, split, images))

    def parse(self, item: Item, output: str) -> str | None:
        answer = pope_answer(output)
        return answer if answer == "no" or "yes" in output.lower() else None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        scores = []
        for split in SPLITS:
            chosen = [answer for answer in answers if answer.item.category["split"] == split]
            if chosen:
                scores += _scores(split, chosen)
        return scores


def _item(split: str, images: MediaFolder, record: Record) -> Item:
    name = record.text("image")
    return Item(
        id=f"{split}/{record.id('question_id')}",
        question=record.text("text"),
        images=(images.image(record, name),),
        references=(record.one_of("label", ("yes", "no")),),
        category={"split": split},
        cluster=name,
    )


def _scores(split: str, answers: Sequence[Answer]) -> list[Score]:
    predicted = [pope_answer(answer.output) for answer in answers]
    labels = [answer.item.references[0] for answer in answers]
    figures = binary_scores(predicted, labels)
    right = [float(said == label) for said, label in zip(predicted, labels, strict=True)]
    said_yes = [float(said == "yes") for said in predicted]
    row, n = PAPER_ROWS[split], len(answers)

    def figure(metric: str, value: float, offset: int) -> Score:
        return Score(metric, 100 * value, n, group=split, paper_id=f"9/{row + offset}")

    return [
        mean("accuracy", answers, right, group=split, paper_id=f"9/{row}"),
        figure("precision", figures.precision, 1),
        figure("recall", figures.recall, 2),
        figure("F1", figures.f1, 3),
        mean("yes ratio", answers, said_yes, group=split, paper_id=f"9/{row + 4}"),
    ]

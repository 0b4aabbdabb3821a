"""POPE: is this object in the image? Yes-or-no questions on COCO in three splits (Table 9).

The paper's "random" has 2910 questions: only with that many do integers give its figures. The file was
replaced by one of 3000 in October 2023; both are read, and N stands beside the score. The authors published
no prompt for POPE; the one of MME, the other yes-or-no benchmark, is used. In the official reading whatever
has no "no" or "not" in its first sentence is a yes; an answer that says neither word is scored so, and
counted as unparsed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import folder_images, official, read_jsonl
from owl2.eval.metrics.yes_no import binary_scores, pope_answer
from owl2.eval.scoring.averages import mean
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import by_analogy, short_answer_below

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
        "owl2-paper": by_analogy(short_answer_below, "evaluate_mme.py"),
        "llava15": Template("LLaVA, llava_pope_test.jsonl", short_answer_below),
        "lmms-eval": Template("lmms-eval 0.7.3, pope.yaml", short_answer_below),
    }
    decoding = Decoding(max_new_tokens=10, min_new_tokens=1)
    expected = (8910, 9000)

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        places = [(split, official(found, self.files, _files(split)[0].path)[0]) for split in SPLITS]
        records = [(split, record) for split, place in places for record in read_jsonl(place)]
        images = folder_images(self.name, data, IMAGES, (record.text("image") for _, record in records))
        items = [
            Item(
                id=f"{split}/{record['question_id']}",
                question=record.text("text"),
                images=(images[record["image"]],),
                references=(record.one_of("label", ("yes", "no")),),
                category={"split": split},
                cluster=record["image"],
            )
            for split, record in records
        ]
        return checked(self.name, items)

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

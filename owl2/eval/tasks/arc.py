"""ARC, challenge and easy: science questions of grades 3 to 9 (Table 3).

Table 16 says test; OpenCompass, which the paper names, has the dev split by default. Both are asked if both
are there, and each figure says which it is. OpenCompass leaves out the few questions with three or five
options; here they are asked, and counted only in "all questions". Official labels may be 1 to 4; letters are
shown instead. `arc_c_ppl` and `arc_e_ppl` compare the likelihoods of the options' texts. The paper's row
could be of either mode and split.
"""

import string
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.records import Record, official, read_records, usable
from owl2.eval.metrics.averages import is_right, mean
from owl2.eval.metrics.choice import first_option
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import opencompass, options, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

SOURCE = "https://s3-us-west-2.amazonaws.com/ai2-website/data/ARC-V1-Feb2018.zip"
LICENCE = "CC BY-SA 4.0"
NUM_OPTIONS = 4
"""Options of the questions that OpenCompass counts."""


def letters(item: Item) -> list[Message]:
    """ARC_c_gen_1e0de5 and ARC_e_gen_1e0de5."""
    return turn(item, f"Question: {item.question}\n{options(item.choices)}\nAnswer:")


def texts(item: Item) -> list[Message]:
    """ARC_c_ppl_a450bd and ARC_e_ppl_a450bd."""
    return turn(item, f"Question: {item.question}\nAnswer: ")


def arc_files(official_name: str, opencompass_name: str) -> tuple[DataFile, ...]:
    """Both splits, in the official layout and OpenCompass's; dev is optional."""
    files = []
    for split in ("Test", "Dev"):
        path = f"ARC-V1-Feb2018-2/{official_name}/{official_name}-{split}.jsonl"
        files += [
            DataFile(path, SOURCE, LICENCE, is_required=split == "Test"),
            DataFile(
                f"ARC/{opencompass_name}/{official_name}-{split}.jsonl",
                "https://github.com/open-compass/opencompass, OpenCompassData",
                LICENCE,
                is_required=False,
                instead_of=path,
            ),
        ]
    return tuple(files)


class _Arc(Task):
    paper_id: ClassVar[str]
    templates: ClassVar[dict[str, Template]] = opencompass("ARC_c_gen_1e0de5 and ARC_e_gen_1e0de5", letters)
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = Decoding(max_new_tokens=32)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        for split, (first, second) in (("test", self.files[:2]), ("dev", self.files[2:])):
            if first.path in found or second.path in found:
                records = read_records(official(found, self.files, first.path))
                yield from usable(records, partial(_item, split))

    def parse(self, item: Item, output: str) -> str | None:
        return first_option(output, "".join(item.choices))

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        scores = []
        for split in ("test", "dev"):
            asked = [answer for answer in answers if answer.item.category["split"] == split]
            counted = [answer for answer in asked if len(answer.item.choices) == NUM_OPTIONS]
            for metric, chosen in (("accuracy", counted), ("accuracy, all questions", asked)):
                if chosen:
                    paper_id = self.paper_id if chosen is counted else ""
                    right = [float(is_right(answer)) for answer in chosen]
                    scores.append(mean(metric, chosen, right, group=split, paper_id=paper_id))
        return scores


class _ArcPpl(Ranked, _Arc):
    templates: ClassVar[dict[str, Template]] = opencompass("ARC_c_ppl_a450bd and ARC_e_ppl_a450bd", texts)


@task
class ArcChallenge(_Arc):
    name = "arc_c"
    title = "ARC challenge"
    files = arc_files("ARC-Challenge", "ARC-c")
    expected = (1172, 1172 + 299)
    paper_id = "3/17"


@task
class ArcChallengePpl(_ArcPpl, ArcChallenge):
    name = "arc_c_ppl"
    title = "ARC challenge (likeliest option)"


@task
class ArcEasy(_Arc):
    name = "arc_e"
    title = "ARC easy"
    files = arc_files("ARC-Easy", "ARC-e")
    expected = (2376, 2376 + 570)
    paper_id = "3/18"


@task
class ArcEasyPpl(_ArcPpl, ArcEasy):
    name = "arc_e_ppl"
    title = "ARC easy (likeliest option)"


def _item(split: str, record: Record) -> Item:
    question = record.inner("question", record["question"])
    rows = question["choices"]
    if not isinstance(rows, list) or not 2 <= len(rows) <= len(string.ascii_uppercase):
        record.fail(f"choices is {rows!r:.60}, expected a list of at least two")
    choices = [question.inner("choices", row) for row in rows]
    labels = [choice.text("label") for choice in choices]
    right = labels.index(record.one_of("answerKey", labels))
    return Item(
        id=f"{split}/{record.id('id')}",
        question=question.text("stem"),
        choices={
            letter: choice.text("text")
            for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
        },
        references=(string.ascii_uppercase[right],),
        category={"split": split},
    )

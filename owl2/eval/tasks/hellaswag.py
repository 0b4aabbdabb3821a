"""HellaSwag: which of four endings goes on with a text (Figure 3).

As OpenCompass: options by letter; `hellaswag_ppl` compares the likelihoods of the endings themselves. Its own
layout (`query`, `choices`, `gold`) and the official one are read; the latter is tidied as in lm-evaluation-
harness, which made the former ("[title]" becomes a period, other brackets go). The paper states no mode.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import Record, official, read_jsonl
from owl2.eval.metrics.choice import first_option
from owl2.eval.scoring.averages import is_right, mean, mean_by_group
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import bare_question, options, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

FILE = "hellaswag/hellaswag_val.jsonl"
LETTERS = "ABCD"


def which_ending(item: Item) -> list[Message]:
    """hellaswag_gen_6faab5."""
    return turn(
        item,
        f"{item.question}\nQuestion: Which ending makes the most sense?\n{options(item.choices)}\n"
        "You may choose from 'A', 'B', 'C', 'D'.\nAnswer:",
    )


@task
class HellaSwag(Task):
    name = "hellaswag"
    title = "HellaSwag"
    files = (
        DataFile(FILE, "https://github.com/rowanz/hellaswag, data/hellaswag_val.jsonl", "MIT"),
        DataFile(
            "hellaswag/hellaswag.jsonl",
            "https://github.com/open-compass/opencompass, OpenCompassData",
            "MIT",
            is_required=False,
            instead_of=FILE,
        ),
    )
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, hellaswag_gen_6faab5.py; the paper names it", which_ending)
    }
    decoding = Decoding(max_new_tokens=32)
    expected = (10_042,)

    def items(self, data: Path) -> list[Item]:
        file = official(self.find(data), self.files, FILE)[0]
        return checked(self.name, [_item(number, record) for number, record in enumerate(read_jsonl(file))])

    def parse(self, item: Item, output: str) -> str | None:
        return first_option(output, LETTERS)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(is_right(answer)) for answer in answers]
        return [
            mean("accuracy", answers, right, paper_id="fig3/42"),
            *mean_by_group("source", "accuracy", answers, right),
        ]


@task
class HellaSwagPpl(Ranked, HellaSwag):
    name = "hellaswag_ppl"
    title = "HellaSwag (likeliest ending)"
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, hellaswag_ppl_47bff9.py; the paper names it", bare_question)
    }


def _item(number: int, record: Record) -> Item:
    if "query" in record.fields:
        # The activity stands before the first colon; OpenCompass leaves it out.
        question, endings, label = record.text("query").split(": ", 1)[-1], record["choices"], record["gold"]
        category = {}
    else:
        context = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
        question = _tidy(f"{record.text('activity_label')}: {context}").split(": ", 1)[-1]
        endings, label = [_tidy(ending) for ending in record["endings"]], record["label"]
        category = {"source": record.text("source_id").partition("~")[0]}
    if not isinstance(endings, list) or len(endings) != len(LETTERS) or str(label) not in "0123":
        raise record.error(f"{len(endings)} endings and label {label!r}; expected four and 0 to 3")
    return Item(
        id=str(number),
        question=question,
        choices=dict(zip(LETTERS, endings, strict=True)),
        references=(LETTERS[int(label)],),
        category=category,
    )


def _tidy(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()

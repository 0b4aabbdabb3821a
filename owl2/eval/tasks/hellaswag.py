"""HellaSwag: which of four endings continues a text (Figure 3).

As OpenCompass: options by letter; `hellaswag_ppl` compares the likelihoods of the endings themselves. On the
paper's date OpenCompass showed `ctx` and the endings as they are in the official file; from 13 November 2023
on it has a tidied file of its own (`query`, `choices`, `gold`), made as lm-evaluation-harness does: "[title]"
becomes a period, other brackets go. Both files are read; the tidied one has no raw text to show. The paper
states no mode.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.records import Record, official, read_records, usable
from owl2.eval.metrics.averages import is_right, mean, mean_by_group
from owl2.eval.metrics.choice import first_option
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import bare_question, opencompass, options, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

FILE = "hellaswag/hellaswag_val.jsonl"
LETTERS = "ABCD"


def which_ending(item: Item) -> list[Message]:
    """hellaswag_gen_6faab5."""
    return _which(item, item.question, item.choices)


def which_tidied_ending(item: Item) -> list[Message]:
    """hellaswag_gen_6faab5 of 13 November 2023, with the text behind the activity."""
    return _which(item, item.extra["query"].split(": ", 1)[-1], tidied(item))


def tidied_text(item: Item) -> list[Message]:
    """hellaswag_ppl_47bff9 of 13 November 2023, which cuts at the second colon, if there is one."""
    return turn(item, item.extra["query"].split(": ", 2)[-1])


def tidied(item: Item) -> Mapping[str, str]:
    return {letter: _tidy(ending) for letter, ending in item.choices.items()}


def _which(item: Item, text: str, endings: Mapping[str, str]) -> list[Message]:
    return turn(
        item,
        f"{text}\nQuestion: Which ending makes the most sense?\n{options(endings)}\n"
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
        **opencompass("hellaswag_gen_6faab5", which_ending),
        "opencompass-2023-11-13": Template(
            "OpenCompass, hellaswag_gen_6faab5 on a tidied file", which_tidied_ending
        ),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "opencompass-2023-11-13"}
    decoding = Decoding(max_new_tokens=32)
    expected = (10_042,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        yield from usable(read_records(official(self.find(data), self.files, FILE)), _item)

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
        **opencompass("hellaswag_ppl_47bff9", bare_question),
        "opencompass-2023-11-13": Template(
            "OpenCompass, hellaswag_ppl_47bff9 on a tidied file", tidied_text, choices=tidied
        ),
    }


def _item(record: Record) -> Item:
    if "query" in record.fields:
        query, endings, label = record.text("query"), record.texts("choices"), record["gold"]
        question, category = query.split(": ", 1)[-1], {}
    else:
        context = f"{record.text('ctx_a')} {record.text('ctx_b').capitalize()}"
        query, question = _tidy(f"{record.text('activity_label')}: {context}"), record.text("ctx")
        endings, label = record.texts("endings"), record["label"]
        category = {"source": record.text("source_id").partition("~")[0]}
    if len(endings) != len(LETTERS) or str(label) not in tuple("0123"):
        record.fail(f"{len(endings)} endings and label {label!r}; expected four and 0 to 3")
    return Item(
        id=str(record.number),
        question=question,
        choices=dict(zip(LETTERS, endings, strict=True)),
        references=(LETTERS[int(label)],),
        category=category,
        extra={"query": query},
    )


def _tidy(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()

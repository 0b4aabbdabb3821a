"""BoolQ: yes-or-no questions about a passage (Figure 3).

As OpenCompass: two options, read as the first capital letter. The layouts of SuperGLUE (`label`), of the
first release (`answer`) and of OpenCompass (`label` as text) are read. `boolq_ppl` compares the likelihoods
of "Yes" and "No". The paper states neither split nor mode.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.records import Record, fingerprint, official, read_records, usable
from owl2.eval.metrics.averages import is_right, mean
from owl2.eval.metrics.choice import first_capital
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import opencompass, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

FILE = "BoolQ/val.jsonl"
LICENCE = "CC BY-SA 3.0"
LETTERS = {"true": "A", "false": "B"}
TITLE_END = " -- "


def letters(item: Item) -> list[Message]:
    """SuperGLUE_BoolQ_gen_883d50."""
    return turn(item, f"{item.extra['passage']}\nQuestion: {item.question}\nA. Yes\nB. No\nAnswer:")


def with_title(item: Item) -> list[Message]:
    """SuperGLUE_BoolQ_ppl_314b96: passage as it is, a question mark."""
    return turn(item, f"{item.extra['passage']}\nQuestion: {item.question}?")


def without_title(item: Item) -> list[Message]:
    """SuperGLUE_BoolQ_ppl_314797: no title, a capital letter, a question mark."""
    passage: str = item.extra["passage"]
    body = passage.partition(TITLE_END)[2] if TITLE_END in passage else passage
    return turn(item, f"Passage: {body}\nQuestion: {item.question[:1].upper()}{item.question[1:]}?")


def answer_yes_or_no(item: Item) -> Mapping[str, str]:
    """The texts that SuperGLUE_BoolQ_ppl_314797 compares."""
    return {letter: f"Answer: {text}" for letter, text in item.choices.items()}


@task
class BoolQ(Task):
    name = "boolq"
    title = "BoolQ"
    files = (
        DataFile(FILE, "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip", LICENCE),
        DataFile(
            "boolq/dev.jsonl",
            "https://github.com/google-research-datasets/boolean-questions",
            LICENCE,
            is_required=False,
            instead_of=FILE,
        ),
    )
    templates: ClassVar[dict[str, Template]] = opencompass("SuperGLUE_BoolQ_gen_883d50", letters)
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = Decoding(max_new_tokens=32)
    expected = (3270,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        yield from usable(read_records(official(self.find(data), self.files, FILE)), _item)

    def parse(self, item: Item, output: str) -> str | None:
        return first_capital(output)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(is_right(answer)) for answer in answers]
        return [mean("accuracy", answers, right, paper_id="fig3/36")]


@task
class BoolQPpl(Ranked, BoolQ):
    name = "boolq_ppl"
    title = "BoolQ (likeliest answer)"
    templates: ClassVar[dict[str, Template]] = {
        **opencompass("SuperGLUE_BoolQ_ppl_314b96", with_title),
        "opencompass-llama": Template(
            "OpenCompass, SuperGLUE_BoolQ_ppl_314797, in its collection for LLaMA since 11 August 2023",
            without_title,
            choices=answer_yes_or_no,
        ),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "opencompass-llama"}


def _item(record: Record) -> Item:
    value = record["label"] if "label" in record.fields else record["answer"]
    if str(value).lower() not in LETTERS:
        record.fail(f"the label is {value!r:.40}, not true or false")
    return Item(
        id=str(record.number),
        question=record.text("question"),
        choices={"A": "Yes", "B": "No"},
        references=(LETTERS[str(value).lower()],),
        cluster=fingerprint(record.text("passage")),
        extra={"passage": record["passage"]},
    )

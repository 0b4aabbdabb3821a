"""MMLU: four-option questions of 57 school and professional subjects, 5 examples before each (Table 3).

As OpenCompass, which the paper names: the first five questions of a subject's dev file as rounds of the
conversation, and the plain mean over subjects (weighting them by size gives another figure). Table 16 says
dev; its 285 questions are those examples, and OpenCompass scores the 14,042 of test. `mmlu_ppl` compares the
likelihoods of the letters, as OpenCompass does for models that do not chat: LLaMA-2-7B's 46.8 of Table 3 is
that. Which of the two the authors ran for their model is not published. All five examples are always shown;
OpenCompass drops the last where a prompt exceeds its 2048 tokens.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from owl2.eval.formats.records import Record, Records, read_rows, usable
from owl2.eval.metrics.averages import is_right, mean, mean_by_group, mean_of_groups
from owl2.eval.metrics.choice import first_capital, first_option
from owl2.eval.task import (
    Answer,
    DataFile,
    Decoding,
    EvalDataError,
    Item,
    Score,
    Skipped,
    Task,
    Template,
    task,
)
from owl2.eval.tasks.prompts import opencompass, options, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

LETTERS = "ABCD"
NUM_SHOTS = 5
DEV, TEST = "mmlu/data/dev", "mmlu/data/test"
SOURCE = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"


class Example(NamedTuple):
    """A question with its options and the right letter."""

    question: str
    options: dict[str, str]
    answer: str


def rounds(item: Item, question_mark: str, answer_mark: str) -> list[Message]:
    """Each example as a round, with the instruction in each; the marks are those of the last question."""
    subject = item.category["subject"].replace("_", " ")
    instruction = (
        f"There is a single choice question about {subject}. Answer the question by replying A, B, C or D."
    )

    def ask(example: Example, before: str, after: str) -> list[Message]:
        return turn(
            item, f"{instruction}\n{before}: {example.question}\n{options(example.options)}\n{after}: "
        )

    messages: list[Message] = []
    for shot in item.extra["shots"]:
        messages += [*ask(shot, "Question", "Answer"), {"role": "assistant", "content": f"{shot.answer}\n"}]
    asked = Example(item.question, item.extra["options"], "")
    return messages + ask(asked, question_mark, answer_mark)


def rounds_2023(item: Item) -> list[Message]:
    """mmlu_gen_a484b3: the examples have `Question:` and `Answer:`, the question `Q:` and `A:`."""
    return rounds(item, "Q", "A")


def rounds_4d595a(item: Item) -> list[Message]:
    """mmlu_gen_4d595a: `Question:` and `Answer:` throughout."""
    return rounds(item, "Question", "Answer")


def first_of_options(item: Item, output: str) -> str | None:
    """OpenCompass's reading from March 2024 on."""
    return first_option(output, LETTERS)


def one_text(item: Item) -> list[Message]:
    """mmlu_ppl_ac766d: examples and question in one text. The two blanks are OpenCompass's."""
    subject = item.category["subject"].replace("_", " ")
    shots = "".join(
        f"{shot.question}\n{options(shot.options)}\nAnswer: {shot.answer}\n" for shot in item.extra["shots"]
    )
    return turn(
        item,
        f"The following are multiple choice questions (with answers) about  {subject}.\n\n{shots}"
        f"{item.question}\n{options(item.extra['options'])}\nAnswer:",
    )


@task
class Mmlu(Task):
    name = "mmlu"
    title = "MMLU (5 examples)"
    files = (DataFile(DEV, SOURCE, "MIT"), DataFile(TEST, SOURCE, "MIT"))
    templates: ClassVar[dict[str, Template]] = {
        **opencompass("mmlu_gen_a484b3", rounds_2023),
        "opencompass-2023-12-27": Template("OpenCompass, mmlu_gen_4d595a", rounds_4d595a),
        "opencompass-2024-03-04": Template(
            "OpenCompass, mmlu_gen_4d595a, read by the first option", rounds_4d595a, parse=first_of_options
        ),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "opencompass-2024-03-04"}
    # The letter is all that is read; OpenCompass's limit is that of its model configuration.
    decoding = Decoding(max_new_tokens=32)
    expected = (14_042,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        for file in sorted(found[TEST].glob("*_test.csv")):
            subject = file.name.removesuffix("_test.csv")
            shots = _examples(found[DEV] / f"{subject}_dev.csv")
            yield from usable(_rows(file), partial(_item, subject, shots))

    def parse(self, item: Item, output: str) -> str | None:
        return first_capital(output)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(is_right(answer)) for answer in answers]
        return [
            mean_of_groups("subject", "accuracy, mean over subjects", answers, right, paper_id="3/14"),
            mean("accuracy, over questions", answers, right),
            *mean_by_group("subject", "accuracy", answers, right),
        ]


@task
class MmluPpl(Ranked, Mmlu):
    name = "mmlu_ppl"
    title = "MMLU (5 examples, likeliest letter)"
    templates: ClassVar[dict[str, Template]] = {
        **opencompass("mmlu_ppl_ac766d as a turn of a conversation", one_text),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}


def _item(subject: str, shots: tuple[Example, ...], record: Record) -> Item:
    question, choices, answer = _example(record)
    return Item(
        id=f"{subject}/{record.number}",
        question=question,
        choices={letter: letter for letter in LETTERS},
        references=(answer,),
        category={"subject": subject},
        extra={"shots": shots, "options": choices},
    )


def _examples(file: Path) -> tuple[Example, ...]:
    """The examples that come before each question of a subject."""
    if not file.is_file():
        raise EvalDataError(f"mmlu: {file} is missing, which has the examples of its subject")
    found = [shot for shot in usable(_rows(file), _example) if not isinstance(shot, Skipped)]
    if len(found) < NUM_SHOTS:
        raise EvalDataError(f"{file}: {len(found)} questions; the examples are the first {NUM_SHOTS}")
    return tuple(found[:NUM_SHOTS])


def _rows(file: Path) -> Records:
    """The rows of a file, which has no header."""
    rows = enumerate(read_rows(file))
    return [Record(f"{file}: row {number + 1}", {"cells": row}, number) for number, row in rows]


def _example(record: Record) -> Example:
    cells: list[str] = record["cells"]
    if len(cells) != len(LETTERS) + 2 or cells[-1].strip() not in tuple(LETTERS):
        record.fail(f"{cells!r:.80}, expected question, A, B, C, D and a letter")
    return Example(cells[0], dict(zip(LETTERS, cells[1:5], strict=True)), cells[-1].strip())

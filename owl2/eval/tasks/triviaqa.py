"""TriviaQA: questions of general knowledge, no context (Figure 3).

As OpenCompass: dev questions, the answer begun with "A:". Its reading changed: in late 2023 the words behind
"the answer is" had to equal an answer; later they only had to contain one, which is worth several points.
Equality, of the paper's date, comes first here; it is not published which of them 43.8 is. The number of
questions (8,837) is not verified.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.records import Record, read_rows, usable
from owl2.eval.metrics.averages import mean
from owl2.eval.metrics.exact import trivia_match
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import opencompass, turn
from owl2.processor.template import Message

FILE = "triviaqa/trivia-dev.qa.csv"


def simple(item: Item) -> list[Message]:
    """triviaqa_gen_2121ce."""
    return turn(
        item,
        "Answer these questions, your answer should be as simple as possible, start your answer with the "
        f"prompt 'The answer is '.\nQ: {item.question}?",
    )


@task
class TriviaQA(Task):
    name = "triviaqa"
    title = "TriviaQA"
    files = (
        DataFile(
            FILE, "https://dl.fbaipublicfiles.com/dpr/data/retriever/trivia-dev.qa.csv.gz", "Apache-2.0"
        ),
    )
    templates: ClassVar[dict[str, Template]] = opencompass("triviaqa_gen_2121ce", simple, " A:")
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = Decoding(max_new_tokens=50)
    expected = (8837,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        file = self.find(data)[FILE]
        rows = enumerate(read_rows(file, delimiter="\t"), start=1)
        records = (Record(f"{file}: row {number}", {"cells": row}, number) for number, row in rows)
        yield from usable(records, _item)

    def parse(self, item: Item, output: str) -> str | None:
        return output.strip().split("\n")[0] or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        equal = [float(trivia_match(answer.output, answer.item.references)) for answer in answers]
        within = [
            float(trivia_match(answer.output, answer.item.references, "substring")) for answer in answers
        ]
        return [
            mean("exact match", answers, equal, paper_id="fig3/38"),
            mean("substring match", answers, within),
        ]


def _item(record: Record) -> Item:
    try:
        question, listed = record["cells"]
        references = ast.literal_eval(listed)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        record.fail(f"{record['cells']!r:.80} is not a question, a tab and a list of answers")
    if not isinstance(references, list) or not references:
        record.fail(f"the answers are {listed!r:.60}, expected a list of at least one")
    return Item(id=str(record.number), question=question, references=tuple(map(str, references)))

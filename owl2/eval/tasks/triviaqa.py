"""TriviaQA: questions of general knowledge, no context (Figure 3).

As OpenCompass: dev questions, the answer opened with "A:". Its reading changed: in late 2023 the words behind
"the answer is" had to equal an answer, later an answer in them is enough, worth several points. Equality is
first here, being of the paper's time; which of them 43.8 is was not published. The number of questions
(8,837) is not verified.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import read_rows
from owl2.eval.metrics.exact import trivia_match
from owl2.eval.scoring.averages import mean
from owl2.eval.task import Answer, DataFile, Decoding, EvalDataError, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import turn
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
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, triviaqa_gen_2121ce.py; the paper names it", simple, " A:")
    }
    decoding = Decoding(max_new_tokens=50)
    expected = (8837,)

    def items(self, data: Path) -> list[Item]:
        file = self.find(data)[FILE]
        rows = enumerate(read_rows(file, delimiter="\t"), start=1)
        return checked(self.name, [_item(f"{file}: row {number}", number, row) for number, row in rows])

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


def _item(where: str, number: int, row: Sequence[str]) -> Item:
    try:
        question, listed = row
        references = ast.literal_eval(listed)
    except (ValueError, SyntaxError) as error:
        raise EvalDataError(f"{where}: {row!r:.80} is not a question, a tab and a list of answers") from error
    if not isinstance(references, list) or not references:
        raise EvalDataError(f"{where}: the answers are {listed!r:.60}, expected a list of at least one")
    return Item(id=str(number), question=question, references=tuple(map(str, references)))

"""MMLU: four-option questions of 57 school and professional subjects, 5 examples before each (Table 3).

As OpenCompass, which the paper names: the first five questions of a subject's dev file as rounds of the
conversation, and the plain mean over subjects (weighting them by size gives another figure). Table 16 says
dev; its 285 questions are those examples, and what OpenCompass scores are the 14,042 of test. `mmlu_ppl`
compares the likelihoods of the letters, as OpenCompass does for models that do not chat: LLaMA-2-7B's 46.8 of
Table 3 is that. Which of the two the authors ran for their model is not published. All
five examples are always shown; OpenCompass drops the last where a prompt exceeds its 2048 tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import read_rows
from owl2.eval.metrics.choice import first_option
from owl2.eval.scoring.averages import is_right, mean, mean_by_group, mean_of_groups
from owl2.eval.task import Answer, DataFile, Decoding, EvalDataError, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import options, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

LETTERS = "ABCD"
NUM_SHOTS = 5
DEV, TEST = "mmlu/data/dev", "mmlu/data/test"
SOURCE = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"


def generation(item: Item) -> list[Message]:
    """mmlu_gen_4d595a: each example a round of the conversation, with the instruction in each."""
    subject = item.category["subject"].replace("_", " ")
    instruction = (
        f"There is a single choice question about {subject}. Answer the question by replying A, B, C or D."
    )

    def ask(question: str, choices: Mapping[str, str]) -> list[Message]:
        return turn(item, f"{instruction}\nQuestion: {question}\n{options(choices)}\nAnswer: ")

    messages: list[Message] = []
    for question, choices, answer in item.extra["shots"]:
        messages += [*ask(question, choices), {"role": "assistant", "content": f"{answer}\n"}]
    return messages + ask(item.question, item.extra["options"])


def perplexity(item: Item) -> list[Message]:
    """mmlu_ppl_ac766d: examples and question in one text. The two blanks are OpenCompass's."""
    subject = item.category["subject"].replace("_", " ")
    shots = "".join(
        f"{question}\n{options(choices)}\nAnswer: {answer}\n"
        for question, choices, answer in item.extra["shots"]
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
        "owl2-paper": Template("OpenCompass, mmlu_gen_4d595a.py; named by the paper", generation)
    }
    # The letter is all that is read; OpenCompass's limit is that of its model configuration.
    decoding = Decoding(max_new_tokens=32)
    expected = (14_042,)

    def items(self, data: Path) -> list[Item]:
        self.find(data)
        return checked(
            self.name,
            [item for file in sorted((data / TEST).glob("*_test.csv")) for item in _subject(data, file)],
        )

    def parse(self, item: Item, output: str) -> str | None:
        return first_option(output, LETTERS)

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
        "owl2-paper": Template(
            "OpenCompass, mmlu_ppl_ac766d.py, as a turn of a conversation; named by the paper", perplexity
        )
    }


def _subject(data: Path, test: Path) -> list[Item]:
    subject = test.name.removesuffix("_test.csv")
    dev = data / DEV / f"{subject}_dev.csv"
    if not dev.is_file():
        raise EvalDataError(f"mmlu: {dev} is missing, which has the examples for {test.name}")
    shots = tuple(_questions(dev)[:NUM_SHOTS])
    if len(shots) < NUM_SHOTS:
        raise EvalDataError(f"{dev}: {len(shots)} questions; the examples are the first {NUM_SHOTS}")
    return [
        Item(
            id=f"{subject}/{number}",
            question=question,
            choices={letter: letter for letter in LETTERS},
            references=(answer,),
            category={"subject": subject},
            extra={"shots": shots, "options": choices},
        )
        for number, (question, choices, answer) in enumerate(_questions(test))
    ]


def _questions(file: Path) -> list[tuple[str, dict[str, str], str]]:
    """Question, options and letter of each row; the files have no header."""
    questions = []
    for number, row in enumerate(read_rows(file), start=1):
        if len(row) != 6 or row[5] not in LETTERS:
            raise EvalDataError(
                f"{file}: row {number} is {row!r:.80}, expected question, A, B, C, D and a letter"
            )
        questions.append((row[0], dict(zip(LETTERS, row[1:5], strict=True)), row[5]))
    return questions

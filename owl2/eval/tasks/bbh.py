"""BIG-Bench Hard: 27 tasks of reasoning, each asked with three worked examples (Table 3: "0-shot").

The paper's 0-shot is a label: OpenCompass, which it names, puts the official chain-of-thought examples into
the prompt and finds none by itself (its ZeroRetriever), hence "0-shot". 17 tasks are read as letters, ten as
text that must equal the target, both as OpenCompass did in late 2023; the figure is the mean over tasks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import as_records, read_json, read_text
from owl2.eval.metrics.exact import bbh_choice, bbh_free_form
from owl2.eval.scoring.averages import is_right, mean_by_group, mean_of_groups
from owl2.eval.task import Answer, DataFile, Decoding, EvalDataError, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import turn
from owl2.processor.template import Message

CHOICE = (
    "temporal_sequences",
    "disambiguation_qa",
    "date_understanding",
    "tracking_shuffled_objects_three_objects",
    "penguins_in_a_table",
    "geometric_shapes",
    "snarks",
    "ruin_names",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_five_objects",
    "logical_deduction_three_objects",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "movie_recommendation",
    "salient_translation_error_detection",
    "reasoning_about_colored_objects",
)
FREE_FORM = (
    "multistep_arithmetic_two",
    "navigate",
    "dyck_languages",
    "word_sorting",
    "sports_understanding",
    "boolean_expressions",
    "object_counting",
    "formal_fallacies",
    "causal_judgement",
    "web_of_lies",
)
QUESTIONS, EXAMPLES = "BIG-Bench-Hard/bbh", "BIG-Bench-Hard/cot-prompts"
SOURCE = "https://github.com/suzgunmirac/BIG-Bench-Hard"
CANARY_END = "-----\n"
"""What stands before it in the example files marks them for filters of training data."""


def three_examples(item: Item) -> list[Message]:
    """bbh_gen_5b92b0."""
    return turn(
        item,
        f"Follow the given examples and answer the question.\n{item.extra['examples']}\n\n"
        f"Q: {item.question}\nA: Let's think step by step.",
    )


@task
class Bbh(Task):
    name = "bbh"
    title = "BBH (3 worked examples)"
    files = (DataFile(QUESTIONS, SOURCE, "MIT"), DataFile(EXAMPLES, SOURCE, "MIT"))
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, bbh_gen_5b92b0.py; named by the paper", three_examples)
    }
    decoding = Decoding(max_new_tokens=512)
    expected = (6511,)

    def items(self, data: Path) -> list[Item]:
        self.find(data)
        items = []
        for name in (*CHOICE, *FREE_FORM):
            file = data / QUESTIONS / f"{name}.json"
            if file.is_file():
                items += _task_items(name, file, data / EXAMPLES / f"{name}.txt")
        return checked(self.name, items)

    def parse(self, item: Item, output: str) -> str | None:
        if item.category["task"] in CHOICE:
            return bbh_choice(output)
        return bbh_free_form(output) or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(is_right(answer)) for answer in answers]
        return [
            mean_of_groups("task", "accuracy, mean over tasks", answers, right, paper_id="3/15"),
            *mean_by_group("task", "accuracy", answers, right),
        ]


def _task_items(name: str, file: Path, examples_file: Path) -> list[Item]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise EvalDataError(f"{file}: expected an object with examples, found {type(content).__name__}")
    if not examples_file.is_file():
        raise EvalDataError(f"bbh: {examples_file} is missing, which has the worked examples for {file.name}")
    examples = read_text(examples_file).rpartition(CANARY_END)[2].strip("\n")
    items = []
    for number, record in enumerate(as_records(content.get("examples"), file)):
        target = record.text("target")
        letter = bbh_choice(target) if name in CHOICE else target
        if not letter:
            raise record.error(f"target {target!r} has no letter")
        items.append(
            Item(
                id=f"{name}/{number}",
                question=record.text("input"),
                references=(letter,),
                category={"task": name},
                extra={"examples": examples},
            )
        )
    return items

"""BIG-Bench Hard: 27 tasks of reasoning, each asked with three worked examples (Table 3: "0-shot").

The paper's "0-shot" is only a label: OpenCompass, which it names, has the official chain-of-thought examples
in the prompt and retrieves no others (its ZeroRetriever). 17 tasks are read as letters, ten as text that must
equal the target, both as OpenCompass of late 2023; the figure is the mean over tasks.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.records import Record, as_records, read_object, read_text, usable
from owl2.eval.locate import locate
from owl2.eval.metrics.averages import is_right, mean_by_group, mean_of_groups
from owl2.eval.metrics.exact import after_answer_is, bbh_choice, bbh_free_form
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
from owl2.eval.tasks.prompts import opencompass, turn
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
"""End of the header that keeps the example files out of training data; OpenCompass's copies have none."""


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
    templates: ClassVar[dict[str, Template]] = {**opencompass("bbh_gen_5b92b0", three_examples)}
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = Decoding(max_new_tokens=512)
    expected = (6511,)
    defects = (
        "ruin_names: the targets of two questions are text instead of a letter, and movie_recommendation has "
        "one; they are compared as OpenCompass compares them (the first capital, or the text without one)",
    )

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        for name in (*CHOICE, *FREE_FORM):
            file = locate(found[QUESTIONS], f"{name}.json")
            if file is None:
                continue
            examples = locate(found[EXAMPLES], f"{name}.txt")
            if examples is None:
                missing = found[EXAMPLES] / f"{name}.txt"
                raise EvalDataError(f"bbh: {missing} is missing, which has the worked examples of {name}")
            shots = read_text(examples).replace("\r\n", "\n").rpartition(CANARY_END)[2].strip("\n")
            records = as_records(read_object(file, "examples")["examples"], file)
            yield from usable(records, partial(_item, name, shots))

    def parse(self, item: Item, output: str) -> str | None:
        if item.category["task"] not in CHOICE:
            return bbh_free_form(output) or None
        said = after_answer_is(output)
        return bbh_choice(output) or (said if said in item.references else None)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(is_right(answer)) for answer in answers]
        return [
            mean_of_groups("task", "accuracy, mean over tasks", answers, right, paper_id="3/15"),
            *mean_by_group("task", "accuracy", answers, right),
        ]


def _item(name: str, examples: str, record: Record) -> Item:
    target = record.text("target")
    return Item(
        id=f"{name}/{record.number}",
        question=record.text("input"),
        references=((bbh_choice(target) or target) if name in CHOICE else target,),
        category={"task": name},
        extra={"examples": examples},
    )

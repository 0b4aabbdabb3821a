"""ScienceQA-IMG: the 2,017 test questions of a school science quiz that have an image (Lu et al. 2022).

Files are the makers' problems.json and pid_splits.json. The authors published no prompt; their prompt for
multiple choice (evaluate_mmbench.py) is used, with the question's context as the hint. An answer is a letter
that is plainly claimed; the official script picks a random option where it reads none, which is never done
here. Accuracy by subject and grades is that of the makers' script.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, Records, read_object, usable
from owl2.eval.metrics.averages import is_right, mean, mean_by_group
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.task import Answer, DataFile, EvalDataError, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import (
    CHOICE,
    CHOICE_VLMEVALKIT,
    LETTER_LLAVA,
    SHORT_ANSWER,
    by_analogy,
    options,
    turn,
)
from owl2.processor.template import Message

SOURCE = "https://github.com/lupantech/ScienceQA"
LICENCE = "CC BY-NC-SA 4.0"
LETTERS = "ABCDE"
_LLAVA_ANSWER = re.compile(r"The answer is ([A-Z])\.")


def _llava(item: Item) -> list[Message]:
    listed = " ".join(f"({letter}) {text}" for letter, text in item.choices.items())
    context = item.extra["hint"] or "N/A"
    return turn(item, f"Context: {context}\nQuestion: {item.question}\nOptions: {listed}\n{LETTER_LLAVA}")


def _lmms_eval(item: Item) -> list[Message]:
    context = f"Context: {item.extra['hint']}\n" if item.extra["hint"] else ""
    return turn(item, f"{context}{item.question}\n{options(item.choices)}\n{LETTER_LLAVA}")


@task
class ScienceQaImg(Task):
    """Test split, questions with an image."""

    name = "scienceqa"
    title = "ScienceQA-IMG test"
    files = (
        DataFile("scienceqa/problems.json", SOURCE, LICENCE),
        DataFile("scienceqa/pid_splits.json", SOURCE, LICENCE),
        DataFile("scienceqa/images/test", f"{SOURCE} (tools/download.sh)", LICENCE),
    )
    templates: ClassVar[dict[str, Template]] = {
        **by_analogy(CHOICE, "by analogy with evaluate_mmbench.py"),
        "owl2-vlmevalkit": CHOICE_VLMEVALKIT,
        "llava15": Template("LLaVA-1.5, llava_test_CQM-A.json", _llava),
        "lmms-eval": Template("lmms-eval 0.7.2", _lmms_eval),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = SHORT_ANSWER
    expected = (2_017,)

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        images = MediaFolder(self.name, data, "scienceqa/images/test")
        rows = _test_problems(found["scienceqa/problems.json"], found["scienceqa/pid_splits.json"])
        shown = (row for row in rows if isinstance(row, Skipped) or row.get("image", "missing"))
        yield from usable(shown, lambda row: _item(row, images))

    def parse(self, item: Item, output: str) -> str | None:
        return parse_choice(output, item.choices)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Accuracy, that by LLaVA's narrower reading, then by the makers' categories."""
        values = [float(is_right(answer)) for answer in answers]
        strict = [float(_llava_reads(answer.output.strip()) in answer.item.references) for answer in answers]
        scores = [
            mean("accuracy", answers, values, paper_id="1/8"),
            mean("accuracy (LLaVA's reading)", answers, strict),
        ]
        for kind in ("subject", "grades"):
            scores += mean_by_group(kind, "accuracy", answers, values)
        return scores


def _test_problems(problems: Path, splits: Path) -> Records:
    """The test split's problems in its order, with their number as `id`."""
    by_number, numbers = read_object(problems), read_object(splits, "test")["test"]
    if not isinstance(numbers, list):
        raise EvalDataError(f"{splits}: test is {type(numbers).__name__}, expected a list of numbers")
    records: Records = []
    for place, number in enumerate(numbers):
        where = f"{problems}: problem {number}"
        problem = by_number.get(str(number))
        if isinstance(problem, dict):
            records.append(Record(where, {**problem, "id": str(number)}, place))
        else:
            found = "not in it" if problem is None else f"{type(problem).__name__}, expected an object"
            records.append(Skipped(where, found))
    return records


def _item(row: Record, images: MediaFolder) -> Item:
    texts = row.texts("choices")
    right = row["answer"]
    if not isinstance(right, int) or not 0 <= right < len(texts) <= len(LETTERS):
        row.fail(f"answer is {right!r} of {len(texts)} choices, expected 0 to {len(texts) - 1}")
    return Item(
        id=row.text("id"),
        question=row.text("question"),
        images=(images.image(row, f"{row['id']}/{row.text('image')}"),),
        choices=dict(zip(LETTERS, texts, strict=False)),
        references=(LETTERS[right],),
        category={"subject": row.text("subject"), "grades": _grades(row)},
        extra={"hint": row.text("hint")},
    )


def _grades(row: Record) -> str:
    number = row.text("grade").removeprefix("grade")
    if not number.isdecimal():
        row.fail(f"grade is {row.text('grade')!r}, expected grade1 to grade12")
    return "1-6" if int(number) <= 6 else "7-12"


def _llava_reads(output: str) -> str | None:
    """A letter alone, a letter with `. ` behind it, or one `The answer is X.`."""
    if output in LETTERS and len(output) == 1:
        return output
    if len(output) >= 3 and output[0] in LETTERS and output[1:3] == ". ":
        return output[0]
    claimed = _LLAVA_ANSWER.findall(output)
    return claimed[0] if len(claimed) == 1 else None

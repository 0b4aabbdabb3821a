"""ScienceQA-IMG: the 2,017 test questions of a school science quiz that have an image (Lu et al. 2022).

Files are the makers' problems.json and pid_splits.json. The authors published no prompt; theirs for multiple
choice (evaluate_mmbench.py, whose prompt ends without a space) is taken, with the question's context as the
hint. An answer is a letter that is plainly claimed; the official script draws a random option where it reads
none, which is never done here. Accuracy by subject, kind of context and grades is that of the makers' script.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from owl2.eval.formats.annotations import checked, texts_of
from owl2.eval.formats.records import Record, folder_images, read_json
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.scoring.averages import is_right, mean, mean_by_group
from owl2.eval.task import Answer, DataFile, EvalDataError, Item, Score, Task, Template, task
from owl2.eval.tasks.base import SHORT_ANSWER
from owl2.eval.tasks.prompts import LETTER_LLAVA, VLMEVALKIT_CHOICE, multiple_choice, options, turn
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
        "owl2-paper": Template("not published; by analogy with evaluate_mmbench.py", multiple_choice),
        "owl2-vlmevalkit": VLMEVALKIT_CHOICE,
        "llava15": Template("LLaVA-1.5, llava_test_CQM-A.json", _llava),
        "lmms-eval": Template("lmms-eval 0.7.2", _lmms_eval),
    }
    decoding = SHORT_ANSWER
    expected = (2_017,)

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        rows = _test_problems(found["scienceqa/problems.json"], found["scienceqa/pid_splits.json"])
        shown = {number: row for number, row in rows.items() if row["image"]}
        names = {number: f"{number}/{row.text('image')}" for number, row in shown.items()}
        images = folder_images(self.name, data, "scienceqa/images/test", names.values())
        items = [_item(number, row, images[names[number]]) for number, row in shown.items()]
        return checked(self.name, items)

    def parse(self, item: Item, output: str) -> str | None:
        return parse_choice(output, item.choices)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """Accuracy, that by LLaVA's narrower reading, then by the makers' categories."""
        values = [float(is_right(answer)) for answer in answers]
        strict = [float(_llava_reads(answer.output) in answer.item.references) for answer in answers]
        scores = [
            mean("accuracy", answers, values, paper_id="1/8"),
            mean("accuracy (LLaVA's reading)", answers, strict),
        ]
        for kind in ("subject", "grades"):
            scores += mean_by_group(kind, "accuracy", answers, values)
        return scores


def _test_problems(problems: Path, splits: Path) -> dict[str, Record]:
    """The test split's problems by number, in its order."""
    by_number, numbers = read_json(problems), read_json(splits)
    if not isinstance(by_number, dict):
        raise EvalDataError(f"{problems}: expected an object of problems by number")
    if not isinstance(numbers, dict) or not isinstance(numbers.get("test"), list):
        raise EvalDataError(f"{splits}: expected an object with the list test")
    missing = [number for number in numbers["test"] if str(number) not in by_number]
    if missing:
        raise EvalDataError(
            f"{problems}: {len(missing):,} of {len(numbers['test']):,} test problems are not in it, "
            f"the first is {missing[0]}"
        )
    return {
        str(number): Record(f"{problems}: problem {number}", by_number[str(number)])
        for number in numbers["test"]
    }


def _item(number: str, row: Record, image: Any) -> Item:
    texts = texts_of(row, "choices")
    right = row["answer"]
    if not isinstance(right, int) or not 0 <= right < len(texts) <= len(LETTERS):
        raise row.error(f"answer is {right!r} of {len(texts)} choices, expected 0 to {len(texts) - 1}")
    return Item(
        id=number,
        question=row.text("question"),
        images=(image,),
        choices=dict(zip(LETTERS, texts, strict=False)),
        references=(LETTERS[right],),
        category={"subject": row.text("subject"), "grades": _grades(row)},
        extra={"hint": row.text("hint")},
    )


def _grades(row: Record) -> str:
    number = row.text("grade").removeprefix("grade")
    if not number.isdecimal():
        raise row.error(f"grade is {row.text('grade')!r}, expected grade1 to grade12")
    return "1-6" if int(number) <= 6 else "7-12"


def _llava_reads(output: str) -> str | None:
    """A letter alone, a letter with `. ` behind it, or one `The answer is X.`."""
    if output in LETTERS and len(output) == 1:
        return output
    if len(output) >= 3 and output[0] in LETTERS and output[1:3] == ". ":
        return output[0]
    claimed = _LLAVA_ANSWER.findall(output)
    return claimed[0] if len(claimed) == 1 else None

"""AGIEval: 21 sets of questions from admission and qualification exams, Chinese and English (Table 3).

Version 1 of the data; prompts and readings of OpenCompass, which the paper names. On the paper's date these
are agieval_gen_64afd3: one option is read by `first_option` over A to E, several (`gaokao-physics`, `jec-qa`)
as the first run of letters, and a gap is compared as mathematics. The figure is the mean over sets.
`agieval_ppl` ranks "The answer is A" and so on where one option is right (agieval_mixed_2f14ad) and generates
the rest; the LLaMA-2-7B of Table 3 (21.8) is probably that.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from owl2.eval.formats.records import Record, fingerprint, read_records, usable
from owl2.eval.locate import locate
from owl2.eval.metrics.averages import is_right, mean, mean_by_group, mean_of_groups
from owl2.eval.metrics.choice import first_capital, first_option
from owl2.eval.metrics.math_answer import find_math_answer, math_equal
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import opencompass, turn
from owl2.eval.tasks.ranked import Ranked
from owl2.processor.template import Message

_GAOKAO = "以下是一道中国高考{}选择题，请选择正确的答案。"
_LETTER = "The following is a {} question. Please select the correct answer."
INSTRUCTIONS = {
    "gaokao-chinese": _GAOKAO.format("语文"),
    "gaokao-english": _GAOKAO.format("英语"),
    "gaokao-geography": _GAOKAO.format("地理"),
    "gaokao-history": _GAOKAO.format("历史"),
    "gaokao-biology": _GAOKAO.format("生物"),
    "gaokao-chemistry": _GAOKAO.format("化学"),
    "gaokao-physics": _GAOKAO.format("物理"),
    "gaokao-mathqa": _GAOKAO.format("数学"),
    "logiqa-zh": "以下是一道中国公务员考试题，请选择正确的答案。",
    "lsat-ar": _LETTER.format("LSAT Analytical Reasoning"),
    "lsat-lr": _LETTER.format("LSAT Logical Reasoning"),
    "lsat-rc": _LETTER.format("LSAT Reading Comprehension"),
    "logiqa-en": _LETTER.format("Logic Reasoning"),
    "sat-math": _LETTER.format("SAT Math"),
    "sat-en": _LETTER.format("SAT English"),
    "sat-en-without-passage": _LETTER.format("SAT English"),
    "aqua-rat": _LETTER.format("AQUA-RAT"),
    "jec-qa-kd": "以下是一道中国司法考试基础知识题，请选择正确的答案。",
    "jec-qa-ca": "以下是一道中国司法考试案例分析题，请选择正确的答案。",
    "gaokao-mathcloze": "以下是一道中国高考数学填空题，请填入正确的答案。",
    "math": _LETTER.format("Math"),
}
"""The 21 sets. OpenCompass says "select" also for `math`, which has no options."""
SEVERAL = ("gaokao-physics", "jec-qa-kd", "jec-qa-ca")
GAPS = ("gaokao-mathcloze", "math")
FIVE_OPTIONS = ("lsat-ar", "lsat-lr", "lsat-rc", "aqua-rat")
JEC = ("jec-qa-kd", "jec-qa-ca")
"""Chinese sets whose answer OpenCompass began in English until May 2024."""
FOLDER = "AGIEval/data/v1"
SOURCE = "https://github.com/ruixiangcui/AGIEval, data/v1"


def is_chinese(exam: str) -> bool:
    return exam.startswith(("gaokao", "jec")) or exam == "logiqa-zh"


def begun(item: Item, english: Sequence[str] = JEC) -> list[Message]:
    """agieval_gen_64afd3: instruction, passage and question, options, the beginning of the answer."""
    exam = item.category["exam"]
    beginning = "答案是： " if is_chinese(exam) and exam not in english else "The answer is "
    return turn(item, f"{_asked(item)}\n{beginning}")


def begun_in_chinese(item: Item) -> list[Message]:
    """agieval_gen_617738: all Chinese sets begin in Chinese."""
    return begun(item, english=())


def ranked_or_begun(item: Item) -> list[Message]:
    """agieval_mixed_2f14ad: ranked texts have the beginning of the answer; no line break before gaps."""
    exam = item.category["exam"]
    if exam in GAPS:
        return turn(item, f"{_asked(item)}{_beginning(exam)}")
    return turn(item, _asked(item)) if item.choices else begun(item)


def by_first_capital(item: Item, output: str) -> str | None:
    """agieval_gen_397d81 (until August 2023), except that `gaokao-physics` had one option there."""
    return _several_or_gap(item, output) if _is_free(item) else first_capital(output)


def _is_free(item: Item) -> bool:
    """Whether the answer is no single letter."""
    return item.category["exam"] in (*SEVERAL, *GAPS)


def _several_or_gap(item: Item, output: str) -> str | None:
    if item.category["exam"] in GAPS:
        return find_math_answer(output)
    letters = re.search("[A-D]+", output)
    return letters[0] if letters else None


def _beginning(exam: str) -> str:
    """What comes before the answer in agieval_mixed_2f14ad."""
    return "答案是：" if is_chinese(exam) else "The answer is "


def _asked(item: Item) -> str:
    parts = [INSTRUCTIONS[item.category["exam"]], item.question, item.extra["options"]]
    return "\n".join(part for part in parts if part)


@task
class AgiEval(Task):
    name = "agieval"
    title = "AGIEval"
    files = (DataFile(FOLDER, SOURCE, "MIT"),)
    templates: ClassVar[dict[str, Template]] = {
        **opencompass("agieval_gen_64afd3", begun),
        "opencompass-2023-07-05": Template("OpenCompass, agieval_gen_397d81", begun, parse=by_first_capital),
        "opencompass-2024-05-06": Template("OpenCompass, agieval_gen_617738", begun_in_chinese),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "opencompass-2023-07-05"}
    decoding = Decoding(max_new_tokens=1024)
    expected = (8269,)
    defects = (
        "jec-qa-kd: line 212 has neither label nor answer and is skipped; OpenCompass counts it as wrong",
        "gaokao-mathqa: 7 labels have several letters, where only one can be read: always wrong, as in "
        "OpenCompass",
    )

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        folder = self.find(data)[FOLDER]
        for exam in INSTRUCTIONS:
            file = locate(folder, f"{exam}.jsonl")
            if file is not None:
                yield from usable(read_records(file), partial(_item, exam))

    def parse(self, item: Item, output: str) -> str | None:
        return _several_or_gap(item, output) if _is_free(item) else first_option(output, "ABCDE")

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        right = [float(_is_right(answer)) for answer in answers]
        return [
            mean_of_groups("exam", "accuracy, mean over sets", answers, right, paper_id="3/16"),
            mean("accuracy, over questions", answers, right),
            *mean_by_group("exam", "accuracy", answers, right),
        ]


@task
class AgiEvalPpl(Ranked, AgiEval):
    name = "agieval_ppl"
    title = "AGIEval (likeliest option)"
    templates: ClassVar[dict[str, Template]] = opencompass("agieval_mixed_2f14ad", ranked_or_begun)
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = AgiEval.decoding

    def parse(self, item: Item, output: str) -> str | None:
        return _several_or_gap(item, output) if _is_free(item) else super().parse(item, output)


def _is_right(answer: Answer) -> bool:
    if answer.item.category["exam"] in GAPS:
        return math_equal(answer.parsed, answer.item.references[0])
    return is_right(answer)


def _item(exam: str, record: Record) -> Item:
    options: Any = record["options"] or []
    label: Any = record["label"] or record.get("answer")
    if not isinstance(options, list):
        record.fail(f"options is {options!r:.60}, expected a list")
    if not label:
        record.fail("neither label nor answer")
    if exam in SEVERAL and not isinstance(label, str | list):
        record.fail(f"label is {label!r:.60}, expected letters")
    letters = "".join(sorted(map(str, label))) if exam in SEVERAL else str(label)
    count = 5 if exam in FIVE_OPTIONS else 4
    is_single = exam not in (*SEVERAL, *GAPS)
    passage = record.text("passage") if record["passage"] else ""
    return Item(
        id=f"{exam}/{record.number}",
        question=passage + record.text("question"),
        choices={letter: f"{_beginning(exam)}{letter}" for letter in "ABCDE"[:count]} if is_single else {},
        references=(letters,),
        category={"exam": exam},
        # Questions on one passage are resampled together.
        cluster=fingerprint(passage) if passage else "",
        extra={"options": "\n".join(map(str, options))},
    )

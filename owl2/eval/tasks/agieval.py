"""AGIEval: 21 sets of questions from admission and qualification exams, Chinese and English (Table 3).

Version 1 of the data, prompts and readings of OpenCompass's agieval_gen_397d81 (late 2023): one option is the
first capital letter, several (`jec-qa`, and `gaokao-physics` as later versions have it) the first run of
letters, a gap is compared as mathematics. The figure is the mean over sets. `agieval_ppl` ranks "The answer
is A" and so on where one option is right (agieval_mixed_2f14ad) and generates the rest like `agieval`; the
LLaMA-2-7B of Table 3 (21.8) is probably that. Not verified: that all labels of several options are in order.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import Record, fingerprint, read_jsonl
from owl2.eval.metrics.choice import first_capital
from owl2.eval.metrics.math_answer import find_math_answer, math_equal
from owl2.eval.scoring.averages import is_right, mean, mean_by_group, mean_of_groups
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import turn
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
"""The 21 sets; "select" for `math`, which has no options, is OpenCompass's."""
SEVERAL = ("gaokao-physics", "jec-qa-kd", "jec-qa-ca")
GAPS = ("gaokao-mathcloze", "math")
FIVE_OPTIONS = ("lsat-ar", "lsat-lr", "lsat-rc", "aqua-rat")
ENGLISH_OPENING = ("jec-qa-kd", "jec-qa-ca")
"""Chinese sets whose answer OpenCompass opens in English."""
FOLDER = "AGIEval/data/v1"
SOURCE = "https://github.com/ruixiangcui/AGIEval, data/v1"


def is_chinese(exam: str) -> bool:
    return exam.startswith(("gaokao", "jec")) or exam == "logiqa-zh"


def opened(item: Item) -> list[Message]:
    """agieval_gen_397d81: instruction, passage and question, options, the opening of the answer."""
    exam = item.category["exam"]
    opening = "答案是： " if is_chinese(exam) and exam not in ENGLISH_OPENING else "The answer is "
    return turn(item, f"{_asked(item)}\n{opening}")


def ranked_or_opened(item: Item) -> list[Message]:
    """agieval_mixed_2f14ad: where options are ranked, their texts have the opening."""
    return turn(item, _asked(item)) if item.choices else opened(item)


def _asked(item: Item) -> str:
    parts = [INSTRUCTIONS[item.category["exam"]], item.question, item.extra["options"]]
    return "\n".join(part for part in parts if part)


@task
class AgiEval(Task):
    name = "agieval"
    title = "AGIEval"
    files = (DataFile(FOLDER, SOURCE, "MIT"),)
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, agieval_gen_397d81.py; named by the paper", opened)
    }
    decoding = Decoding(max_new_tokens=1024)
    expected = (8267,)

    def items(self, data: Path) -> list[Item]:
        self.find(data)
        items = []
        for exam in INSTRUCTIONS:
            file = data / FOLDER / f"{exam}.jsonl"
            if file.is_file():
                items += [_item(exam, number, record) for number, record in enumerate(read_jsonl(file))]
        return checked(self.name, items)

    def parse(self, item: Item, output: str) -> str | None:
        exam = item.category["exam"]
        if exam in GAPS:
            return find_math_answer(output)
        if exam in SEVERAL:
            letters = re.search("[A-D]+", output)
            return letters[0] if letters else None
        return first_capital(output)

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
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("OpenCompass, agieval_mixed_2f14ad.py; named by the paper", ranked_or_opened)
    }
    decoding = AgiEval.decoding

    def parse(self, item: Item, output: str) -> str | None:
        return super().parse(item, output) if item.choices else AgiEval.parse(self, item, output)


def _is_right(answer: Answer) -> bool:
    if answer.item.category["exam"] in GAPS:
        return math_equal(answer.parsed, answer.item.references[0])
    return is_right(answer)


def _item(exam: str, number: int, record: Record) -> Item:
    options: Any = record["options"] or []
    label: Any = record["label"] or record.get("answer")
    if not isinstance(options, list) or not label:
        raise record.error(f"options {options!r:.60} and label {label!r:.20}; expected a list and a label")
    letters = "".join(sorted(map(str, label))) if exam in SEVERAL else str(label)
    count = 5 if exam in FIVE_OPTIONS else 4
    opening = "答案是：" if is_chinese(exam) else "The answer is "
    is_single = exam not in (*SEVERAL, *GAPS)
    return Item(
        id=f"{exam}/{number}",
        question=(record["passage"] or "") + record.text("question"),
        choices={letter: f"{opening}{letter}" for letter in "ABCDE"[:count]} if is_single else {},
        references=(letters,),
        category={"exam": exam},
        # Questions on one passage stand or fall together.
        cluster=fingerprint(record["passage"]) if record["passage"] else "",
        extra={"options": "\n".join(options)},
    )

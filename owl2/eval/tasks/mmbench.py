"""MMBench: multiple choice with CircularEval: a question must be right under every rotation of its options.

Table 2 has the test split (64.5), Table 10 the dev split by ability (65.4; its text calls it test). Two
official tables are read: the first release's (20230712, which the authors used; its test has no answers) and
VLMEvalKit's, where an image may be the index of the row that has it, and test has answers. Rows from index
1,000,000 on are rotations of index modulo that. An empty cell or "nan" (what pandas writes for one) is no
option and no hint; "None" is an option, as some are that word. Letters are read by `parse_choice`; the
official fallback to a language model is not used. Not verified: abilities' names in the table, rows of test.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from owl2.data.sample import StoredImage
from owl2.eval.formats.media import base64_image
from owl2.eval.formats.records import Record, by_id, official, read_table, usable
from owl2.eval.metrics.averages import is_right, mean, mean_by_group
from owl2.eval.metrics.choice import circular_right, parse_choice
from owl2.eval.task import Answer, DataFile, EvalDataError, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import (
    CHOICE,
    CHOICE_VLMEVALKIT,
    LETTER_LLAVA,
    SHORT_ANSWER,
    multiple_choice_llava,
    options,
    turn,
)
from owl2.processor.template import Message

ROTATION = 1_000_000
LONGEST_REFERENCE = 64
"""Up to this many characters, `image` is another row's index (VLMEvalKit image_base.py)."""
ABILITIES = {
    "logic_reasoning": ("LR", "10/133"),
    "attribute_reasoning": ("AR", "10/134"),
    "relation_reasoning": ("RR", "10/135"),
    "finegrained_perception (instance-level)": ("FP-S", "10/136"),
    "finegrained_perception (cross-instance)": ("FP-C", "10/137"),
    "coarse_perception": ("CP", "10/138"),
}
SOURCE = (
    "https://opencompass.openxlab.space/utils/benchmarks/MMBench/ or "
    "https://download.openmmlab.com/mmclassification/datasets/mmbench/"
)


def several_options(item: Item) -> list[Message]:
    """lmms-eval: hint, question and "There are several options:" on one line, a blank line before the end."""
    asked = f"{item.extra['hint']} {item.question}".strip()
    return turn(item, f"{asked} There are several options:\n{options(item.choices)}\n\n{LETTER_LLAVA}")


class _MMBench(Task):
    split: ClassVar[str]
    paper_id: ClassVar[str]
    templates: ClassVar[dict[str, Template]] = {
        **CHOICE,
        "owl2-vlmevalkit": CHOICE_VLMEVALKIT,
        "llava15": Template("LLaVA, model_vqa_mmbench.py", multiple_choice_llava),
        "lmms-eval": Template("lmms-eval 0.7.3, mmbench_en_dev.yaml", several_options),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = SHORT_ANSWER

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        table = official(self.find(data), self.files, self.files[0].path)
        records, skipped = by_id(read_table(table), "index")
        yield from skipped
        if not any(int(index) >= ROTATION for index in records if index.isdecimal()):
            raise EvalDataError(
                f"{table}: no row from index {ROTATION:,} on, so no rotations for CircularEval"
            )

        def make(record: Record) -> Item:
            if record.get("split", "") not in ("", self.split):
                record.fail(f"split is {record['split']}; {self.name} needs {self.split}")
            return _item(record, _image(table.stem, record, records))

        # A question's rotations come together, so that a part of the rows is whole questions.
        ordered = sorted(records.values(), key=_rotation)
        yield from usable(ordered, make)

    def parse(self, item: Item, output: str) -> str | None:
        return parse_choice(output, item.choices)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        graded = [answer for answer in answers if answer.item.references]
        if not graded:
            return []
        questions: dict[str, list[Answer]] = {}
        for answer in graded:
            questions.setdefault(answer.item.cluster, []).append(answer)
        firsts = [rotations[0] for rotations in questions.values()]
        right = [circular_right([is_right(answer) for answer in asked]) for asked in questions.values()]
        unrotated = [answer for answer in graded if answer.item.id == answer.item.cluster]
        by_ability = mean_by_group(
            "ability", "CircularEval accuracy", firsts, right, paper_ids=self.ability_paper_ids()
        )
        overall = [mean("CircularEval accuracy", firsts, right, paper_id=self.paper_id)]
        if unrotated:
            overall.append(mean("vanilla accuracy", unrotated, [is_right(answer) for answer in unrotated]))
        return overall + by_ability

    def ability_paper_ids(self) -> Mapping[str, str]:
        return {}


def _tables(*names: str) -> tuple[DataFile, ...]:
    first, *others = (f"mmbench/{name}.tsv" for name in names)
    replacements = [DataFile(path, SOURCE, is_required=False, instead_of=first) for path in others]
    return (DataFile(first, SOURCE), *replacements)


@task
class MMBench(_MMBench):
    name = "mmbench"
    title = "MMBench test"
    split = "test"
    paper_id = "2/10"
    files = _tables("MMBench_TEST_EN", "mmbench_test_20230712", "mmbench_test_en_20231003")
    expected = (6666, 6718)


@task
class MMBenchDev(_MMBench):
    name = "mmbench_dev"
    title = "MMBench dev"
    split = "dev"
    paper_id = "10/132"
    files = _tables("mmbench_dev_20230712", "MMBench_DEV_EN", "mmbench_dev_en_20231003")
    expected = (4329, 4377)

    def ability_paper_ids(self) -> Mapping[str, str]:
        return dict(ABILITIES.values())


def _rotation(record: Record) -> tuple[int, int]:
    index = int(record["index"]) if record["index"].isdecimal() else 0
    return index % ROTATION, index


def _item(record: Record, image: StoredImage) -> Item:
    if not record["index"].isdecimal():
        record.fail(f"index is {record['index']!r:.40}, not a number")
    choices = {
        letter: record[letter] for letter in string.ascii_uppercase if _is_there(record.get(letter, ""))
    }
    if len(choices) < 2:
        record.fail(f"{len(choices)} options; a question has at least two")
    answer = record.get("answer", "")
    if _is_there(answer):
        record.one_of("answer", choices)
    ability = record.get("l2-category", "")
    hint = record.get("hint", "")
    index = int(record["index"])
    return Item(
        id=str(index),
        question=record["question"],
        images=(image,),
        choices=choices,
        references=(answer,) if _is_there(answer) else (),
        category={"ability": ABILITIES.get(ability, (ability,))[0], "category": record.get("category", "")},
        cluster=str(index % ROTATION),
        extra={"hint": hint if _is_there(hint) else ""},
    )


def _is_there(cell: str) -> bool:
    return cell not in ("", "nan")


def _image(table: str, record: Record, records: Mapping[str, Record]) -> StoredImage:
    cell = record.text("image")
    if len(cell) <= LONGEST_REFERENCE:
        owner = records.get(cell)
        if owner is None or len(owner["image"]) <= LONGEST_REFERENCE:
            record.fail(f"image is {cell!r}, which is neither base64 nor the index of a row that has one")
        cell = owner["image"]
    return base64_image(f"{table}/{record['index']}", cell)

"""Q-Bench A1 (LLVisionQA): multiple choice on low-level vision, by type and concern (Tables 2 and 12).

The official test file has no answers (they were graded by mail); VLMEvalKit's Q-Bench1_TEST.tsv has. Three
layouts are read: llvisionqa_*.json with images in a folder, the TSV, and the parquet files of
q-future/Q-Bench-HF. The prompt is MMBench's, as the authors say (X-PLUG/mPLUG-Owl#185). Not verified: the
TSV's categories, the numbers of questions, and that JSON counts types as yes-or-no, what, how (its one known
record agrees; parquet has yes-or-no, how, what). Table 12's figures are fractions, and so are ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from owl2.data.sample import StoredImage
from owl2.eval.formats.annotations import checked
from owl2.eval.formats.records import (
    Record,
    as_records,
    base64_image,
    folder_images,
    official,
    parquet_image,
    read_json,
    read_parquet,
    read_tsv,
)
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.scoring.averages import is_right, mean, mean_by_group
from owl2.eval.task import Answer, DataFile, Decoding, Item, Score, Task, Template, task
from owl2.eval.tasks.prompts import (
    LETTER_LLAVA,
    VLMEVALKIT_CHOICE,
    multiple_choice,
    multiple_choice_llava,
    options,
    turn,
)
from owl2.processor.template import Message

LETTERS = "ABCD"
TYPES_JSON = ("yes-or-no", "what", "how")
TYPES_PARQUET = ("yes-or-no", "how", "what")
CONCERNS = ("distortion", "others", "in-context distortion", "in-context others")
PAPER_IDS = {
    "yes-or-no": "12/146",
    "what": "12/147",
    "how": "12/148",
    "distortion": "12/149",
    "others": "12/150",
    "in-context distortion": "12/151",
    "in-context others": "12/152",
}
IMAGES = ("q_bench/images", "q_bench/images_llvisionqa")
SOURCE = "https://huggingface.co/datasets/nanyangtu/LLVisionQA-QBench"
PARQUET_SOURCE = "https://huggingface.co/datasets/q-future/Q-Bench-HF, its folder data"
TSV_SOURCE = "https://huggingface.co/datasets/zhangzicheng/qbench_tsv"


def q_instruct(item: Item) -> list[Message]:
    """Q-Future's script for mPLUG-Owl2: a line break behind the letter sentence."""
    return turn(item, f"{item.question}\n{options(item.choices)}\n{LETTER_LLAVA}\n")


class _QBench(Task):
    parquet: ClassVar[str]
    """Its split's name in the parquet files."""
    templates: ClassVar[dict[str, Template]] = {
        "owl2-paper": Template("evaluate_mmbench.py, which the authors refer to", multiple_choice),
        "owl2-vlmevalkit": VLMEVALKIT_CHOICE,
        "q-instruct": Template("Q-Instruct, eval_qbench_mcq.py for mPLUG-Owl2", q_instruct),
        "llava15": Template("LLaVA, model_vqa_qbench.py", multiple_choice_llava),
        "lmms-eval": Template("lmms-eval 0.7.3, qbench_dev.yaml", q_instruct),
    }
    decoding = Decoding(max_new_tokens=10, min_new_tokens=1)

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        place = official(found, self.files, self.files[0].path)[0]
        if place.suffix == ".tsv":
            return checked(self.name, [_tsv_item(place.stem, record) for record in read_tsv(place)])
        if place.suffix != ".json":
            files = sorted(place.glob(f"{self.parquet}-*.parquet"))
            return checked(self.name, [_parquet_item(record) for record in read_parquet(files)])
        records = as_records(read_json(place), place)
        folder = next((folder for folder in IMAGES if folder in found), IMAGES[0])
        images = folder_images(self.name, data, folder, [record.text("img_path") for record in records])
        items = [_json_item(number, record, images) for number, record in enumerate(records)]
        return checked(self.name, items)

    def parse(self, item: Item, output: str) -> str | None:
        return parse_choice(output, item.choices)

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        graded = [answer for answer in answers if answer.item.references]
        if not graded:
            return []
        right = [float(is_right(answer)) for answer in graded]
        ids = self.paper_ids()
        return [
            mean("accuracy", graded, right, paper_id=ids.get("", "")),
            *mean_by_group("type", "accuracy (fraction)", graded, right, scale=1.0, paper_ids=ids),
            *mean_by_group("concern", "accuracy (fraction)", graded, right, scale=1.0, paper_ids=ids),
        ]

    def paper_ids(self) -> Mapping[str, str]:
        return {}


def _files(tsv: str, questions: str) -> tuple[DataFile, ...]:
    """The table with answers first, then the other layouts; images in a folder are the second's."""
    return (
        DataFile(f"q_bench/{tsv}", f"{TSV_SOURCE}/resolve/main/{tsv}"),
        DataFile(f"q_bench/{questions}", SOURCE, is_required=False, instead_of=f"q_bench/{tsv}"),
        DataFile("q_bench/data", PARQUET_SOURCE, is_required=False, instead_of=f"q_bench/{tsv}"),
        *(DataFile(folder, f"{SOURCE}, images_llvisionqa.tar", is_required=False) for folder in IMAGES),
    )


@task
class QBench(_QBench):
    name = "q_bench"
    title = "Q-Bench test"
    parquet = "test"
    files = _files("Q-Bench1_TEST.tsv", "llvisionqa_test.json")
    expected = (1495,)

    def paper_ids(self) -> Mapping[str, str]:
        return {"": "2/13", **PAPER_IDS}


@task
class QBenchDev(_QBench):
    name = "q_bench_dev"
    title = "Q-Bench dev"
    parquet = "dev"
    files = _files("Q-Bench1_VAL.tsv", "llvisionqa_dev.json")
    expected = (1495,)


def _json_item(number: int, record: Record, images: Mapping[str, StoredImage]) -> Item:
    choices = dict(zip(LETTERS, record["candidates"], strict=False))
    right = record.get("correct_ans")
    letters = [letter for letter, text in choices.items() if text == right]
    if right is not None and len(letters) != 1:
        raise record.error(
            f"correct_ans {right!r} is {len(letters)} of the candidates {record['candidates']!r}"
        )
    name = record["img_path"]
    category = _category(record, record["type"], TYPES_JSON, record["concern"])
    return _item(f"{number}/{name}", record, images[name], choices, tuple(letters), category)


def _tsv_item(table: str, record: Record) -> Item:
    choices = {letter: record[letter] for letter in LETTERS if record.get(letter, "") not in ("", "nan")}
    answer = record.get("answer", "")
    references = (record.one_of("answer", choices),) if answer else ()
    image = base64_image(f"{table}/{record['index']}", record.text("image"))
    group = record.get("category", "")
    return _item(
        str(record["index"]), record, image, choices, references, {"type": group.lower()} if group else {}
    )


def _parquet_item(record: Record) -> Item:
    texts = [record[f"option{number}"] for number in range(len(LETTERS))]
    choices = {letter: text for letter, text in zip(LETTERS, texts, strict=True) if text != "N/A"}
    answer = record.get("correct_choice", "")
    references = (record.one_of("correct_choice", choices),) if answer else ()
    image = dataclasses.replace(parquet_image(record, "image"), name=f"q_bench/{record['id']}")
    category = _category(record, record["question_type"], TYPES_PARQUET, record["question_concern"])
    return _item(str(record["id"]), record, image, choices, references, category)


def _category(record: Record, kind: Any, kinds: Sequence[str], concern: Any) -> dict[str, str]:
    if kind not in range(len(kinds)) or concern not in range(len(CONCERNS)):
        raise record.error(f"type {kind!r} and concern {concern!r}; expected 0 to 2 and 0 to 3")
    return {"type": kinds[kind], "concern": CONCERNS[concern]}


def _item(
    name: str,
    record: Record,
    image: StoredImage,
    choices: Mapping[str, str],
    references: tuple[str, ...],
    category: Mapping[str, str],
) -> Item:
    question = record.text("question")
    return Item(name, question, (image,), choices=choices, references=references, category=category)

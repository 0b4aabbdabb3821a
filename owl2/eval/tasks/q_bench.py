"""Q-Bench A1 (LLVisionQA): multiple choice on low-level vision, by type and concern (Tables 2 and 12).

The official test file has no answers (they were graded by mail); VLMEvalKit's Q-Bench1_TEST.tsv has them.
Three layouts are read: llvisionqa_*.json with images in a folder, the TSV, and the parquet files of
q-future/Q-Bench-HF. The prompt is MMBench's, as the authors say (X-PLUG/mPLUG-Owl#185). Not verified: the
TSV's categories, the numbers of questions, and that JSON counts types as yes-or-no, what, how (its one known
record agrees; parquet has yes-or-no, how, what). Table 12's figures are fractions, and so are these.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from owl2.data.sample import StoredImage
from owl2.eval.formats.media import MediaFolder, base64_image, parquet_image
from owl2.eval.formats.records import (
    Record,
    official,
    read_parquet,
    read_records,
    read_table,
    usable,
)
from owl2.eval.metrics.averages import is_right, mean, mean_by_group
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.task import Answer, DataFile, Item, Score, Skipped, Task, Template, task
from owl2.eval.tasks.prompts import (
    CHOICE,
    CHOICE_VLMEVALKIT,
    LETTER_LLAVA,
    SHORT_ANSWER,
    by_analogy,
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
    """Q-Future's script for mPLUG-Owl2: a line break after the letter sentence."""
    return turn(item, f"{item.question}\n{options(item.choices)}\n{LETTER_LLAVA}\n")


class _QBench(Task):
    parquet: ClassVar[str]
    """Its split's name in the parquet files."""
    templates: ClassVar[dict[str, Template]] = {
        **by_analogy(CHOICE, "evaluate_mmbench.py, which the authors refer to"),
        "owl2-vlmevalkit": CHOICE_VLMEVALKIT,
        "q-instruct": Template("Q-Instruct, eval_qbench_mcq.py for mPLUG-Owl2", q_instruct),
        "llava15": Template("LLaVA, model_vqa_qbench.py", multiple_choice_llava),
        "lmms-eval": Template("lmms-eval 0.7.3, qbench_dev.yaml", q_instruct),
    }
    old_names: ClassVar[dict[str, str]] = {"owl2-paper": "owl2-2023"}
    decoding = SHORT_ANSWER

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        place = official(found, self.files, self.files[0].path)
        if place.is_dir():
            files = sorted(place.glob(f"{self.parquet}-*.parquet"))
            yield from usable(read_parquet(files), _parquet_item)
        elif ".tsv" in place.suffixes:
            yield from usable(read_table(place), partial(_table_item, place.stem))
        else:
            folder = next((folder for folder in IMAGES if folder in found), IMAGES[0])
            images = MediaFolder(self.name, data, folder)
            yield from usable(read_records(place), partial(_json_item, images))

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


def _json_item(images: MediaFolder, record: Record) -> Item:
    candidates = record.texts("candidates")
    if len(candidates) > len(LETTERS):
        record.fail(f"{len(candidates)} candidates, expected {len(LETTERS)} at most")
    choices = dict(zip(LETTERS, candidates, strict=False))
    right = record.get("correct_ans")
    letters = [letter for letter, text in choices.items() if text == right]
    if right is not None and len(letters) != 1:
        record.fail(f"correct_ans {right!r} is {len(letters)} of the candidates {candidates!r}")
    name = record.text("img_path")
    category = _category(record, record["type"], TYPES_JSON, record["concern"])
    image = images.image(record, name)
    return _item(f"{record.number}/{name}", record, image, choices, tuple(letters), category)


def _table_item(table: str, record: Record) -> Item:
    choices = {letter: record[letter] for letter in LETTERS if record.get(letter, "") not in ("", "nan")}
    if record.get("E", "") not in ("", "nan"):
        record.fail("an option E, expected A to D")
    answer = record.get("answer", "")
    references = (record.one_of("answer", choices),) if answer else ()
    image = base64_image(f"{table}/{record['index']}", record.text("image"))
    group = record.get("category", "")
    category = {"type": group.lower()} if group else {}
    return _item(record.text("index"), record, image, choices, references, category)


def _parquet_item(record: Record) -> Item:
    texts = [record.text(f"option{number}") for number in range(len(LETTERS))]
    choices = {letter: text for letter, text in zip(LETTERS, texts, strict=True) if text != "N/A"}
    answer = record.get("correct_choice", "")
    references = (record.one_of("correct_choice", choices),) if answer else ()
    image = parquet_image(record, "image", f"q_bench/{record['id']}")
    category = _category(record, record["question_type"], TYPES_PARQUET, record["question_concern"])
    return _item(record.id("id"), record, image, choices, references, category)


def _category(record: Record, kind: Any, kinds: Sequence[str], concern: Any) -> dict[str, str]:
    if kind not in range(len(kinds)) or concern not in range(len(CONCERNS)):
        record.fail(f"type {kind!r} and concern {concern!r}; expected 0 to 2 and 0 to 3")
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

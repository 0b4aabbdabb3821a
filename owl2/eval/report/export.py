"""Submission files: answers in the format that each benchmark's organisers or their scripts read.

One function for each format, from answers to files; the table at the end says which benchmark has which. The
answers are processed as the authors' scripts of that benchmark do before they submit.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from owl2.errors import Owl2Error
from owl2.eval.metrics.vqa import normalise
from owl2.eval.scoring.score import TaskResult
from owl2.eval.task import Answer
from owl2.files import write_file

Files = Mapping[str, bytes]
"""File name, within the task's own folder or not -> content."""


class ExportError(Owl2Error, ValueError):
    """Answers that cannot be written in the organisers' format."""


def has_export(task: str) -> bool:
    """Whether this benchmark has a format for submissions."""
    return task in EXPORTS


def export_task(result: TaskResult, out: Path) -> list[Path]:
    """Write a task's answers; return the files.

    Raises:
        ExportError: no such format, or the package that writes it is missing.
    """
    name = result.task.name
    if name not in EXPORTS:
        raise ExportError(f"{name} has no format for submissions; there are {', '.join(sorted(EXPORTS))}")
    paths = []
    for file, content in EXPORTS[name](name, result.answers).items():
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
        paths.append(path)
    return paths


def evalai_vqa(name: str, answers: Sequence[Answer]) -> Files:
    """VQAv2, OKVQA and TextVQA: `[{"question_id": 262148000, "answer": "down"}]`.

    Answers go through EvalAI's processor, as the authors' and LLaVA's scripts do: the official VQA code does
    not normalise where the ten people agree, so `Yes` would earn nothing against ten times `yes`.
    """
    rows = [
        {"question_id": _number(a.item.id), "answer": normalise(a.output.strip(), "evalai")} for a in answers
    ]
    return {f"{name}.json": _json(rows)}


def vizwiz(name: str, answers: Sequence[Answer]) -> Files:
    """`[{"image": "VizWiz_test_00000000.jpg", "answer": ...}]`, answers through EvalAI's normalisation."""
    rows = [{"image": a.item.id, "answer": normalise(a.output.strip(), "evalai")} for a in answers]
    return {f"{name}.json": _json(rows)}


def gqa(name: str, answers: Sequence[Answer]) -> Files:
    """`[{"questionId": "20644644", "prediction": "bedroom"}]`; the official script compares exactly."""
    rows = [{"questionId": a.item.id, "prediction": a.output.strip().rstrip(".").lower()} for a in answers]
    return {f"{name}.json": _json(rows)}


def coco(name: str, answers: Sequence[Answer]) -> Files:
    """`[{"image_id": 391895, "caption": ...}]`, as COCO's caption server and pycocoevalcap take it."""
    rows = [{"image_id": a.item.extra["image_id"], "caption": a.output.strip()} for a in answers]
    return {f"{name}.json": _json(rows)}


def mmbench(name: str, answers: Sequence[Answer]) -> Files:
    """A table of index, question, options and prediction, including rotations."""
    try:
        from openpyxl import Workbook
    except ModuleNotFoundError as error:
        raise ExportError("MMBench takes .xlsx, which needs openpyxl: pip install 'owl2[eval]'") from error
    letters = sorted({letter for answer in answers for letter in answer.item.choices} | set("ABCD"))
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["index", "question", *letters, "prediction"])
    for answer in answers:
        item = answer.item
        options = [_cell(item.choices.get(letter, "")) for letter in letters]
        row = [
            _number(item.id),
            _cell(item.question),
            *options,
            answer.parsed or _cell(answer.output.strip()),
        ]
        sheet.append(row)
        for cell in sheet[sheet.max_row]:
            if cell.data_type == "f":  # a text that begins with = is no formula
                cell.data_type = "s"
    stream = io.BytesIO()
    book.save(stream)
    return {f"{name}.xlsx": stream.getvalue()}


def mme(name: str, answers: Sequence[Answer]) -> Files:
    """A text for each subtask, as `eval_tool/Your_Results`: image, question, right answer, answer, with
    tabs."""
    lines: dict[str, list[str]] = {}
    for answer in answers:
        item = answer.item
        image = PurePosixPath(item.images[0].name).name
        cells = [image, item.question, item.references[0].capitalize(), answer.output]
        line = "\t".join(" ".join(cell.split()) for cell in cells)
        lines.setdefault(item.category["subtask"], []).append(line)
    return {f"{name}/{subtask}.txt": _lines(rows) for subtask, rows in lines.items()}


def pope(name: str, answers: Sequence[Answer]) -> Files:
    """A file for each split, one `{"question": ..., "answer": ...}` a line, in the order of the questions."""
    lines: dict[str, list[str]] = {}
    for answer in answers:
        row = {"question": answer.item.question, "answer": answer.output}
        lines.setdefault(answer.item.id.split("/")[0], []).append(json.dumps(row, ensure_ascii=False))
    return {f"{name}/coco_pope_{split}.jsonl": _lines(rows) for split, rows in lines.items()}


def mmvet(name: str, answers: Sequence[Answer]) -> Files:
    """`{"v1_0": "In the equation, x is ..."}`."""
    return {f"{name}.json": _json({answer.item.id: answer.output for answer in answers})}


def mmhal(name: str, answers: Sequence[Answer]) -> Files:
    """`response_template.json` with `model_answer` filled in: what eval_gpt_mmhal.py reads."""
    rows = [
        {
            "question_type": answer.item.category["type"],
            "question_topic": answer.item.category["topic"],
            "image_id": answer.item.cluster,
            "image_content": list(answer.item.extra["image_content"]),
            "question": answer.item.question,
            "gt_answer": answer.item.references[0],
            "model_answer": answer.output,
        }
        for answer in answers
    ]
    return {f"{name}.json": _json(rows)}


def seed_bench(name: str, answers: Sequence[Answer]) -> Files:
    """One `{"question_id": "101669", "prediction": "A"}` a line; an unread answer is an empty prediction."""
    rows = [{"question_id": a.item.id, "prediction": a.parsed or ""} for a in answers]
    return {f"{name}.jsonl": _lines([json.dumps(row) for row in rows])}


EXPORTS: Mapping[str, Callable[[str, Sequence[Answer]], Files]] = {
    "coco_caption": coco,
    "flickr30k": coco,
    "gqa": gqa,
    "mmbench": mmbench,
    "mmbench_dev": mmbench,
    "mme": mme,
    "mmhal": mmhal,
    "mmvet": mmvet,
    "okvqa": evalai_vqa,
    "pope": pope,
    "seed_bench": seed_bench,
    "seed_bench_ppl": seed_bench,
    "textvqa": evalai_vqa,
    "textvqa_ocr": evalai_vqa,
    "vizwiz": vizwiz,
    "vizwiz_test": vizwiz,
    "vqav2": evalai_vqa,
    "vqav2_test": evalai_vqa,
}
"""By the name of the task."""


def _number(name: str) -> int | str:
    """Ids are numbers in the official files, where they look like ones."""
    return int(name) if name.isdigit() else name


def _cell(text: str) -> str:
    """Without the control characters that .xlsx cannot hold."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _lines(rows: Sequence[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode("utf-8", "backslashreplace")

"""TGIF-QA, FrameQA: questions on GIFs that a single frame answers, with one word (Jang et al. 2017).

The makers' Test_frameqa_question.csv is separated by tabs, a line a question, and quotes in it mean nothing;
`vid_id` is the question, `key` the GIF. Words such as "fiFRAMEQAlace" are the file's own, from a replacement
that went wrong, and are shown to the model as they are. Video-ChatGPT's two files are taken, too. The other
three tasks of the benchmark (counts, actions, transitions) are not what the paper reports.
"""

import csv
import dataclasses
from pathlib import Path

from owl2.eval.formats.annotations import checked, folder_clips, read_video_questions
from owl2.eval.formats.records import Record, read_text
from owl2.eval.task import DataFile, EvalDataError, Item, task
from owl2.eval.tasks.base import VideoQaTask

SOURCE = "https://github.com/YunseokJANG/tgif-qa/tree/master/dataset"
LICENCE = "research only"
CSV = "tgif_qa/Test_frameqa_question.csv"
COLUMNS = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")
TYPES = {"0": "object", "1": "number", "2": "color", "3": "location"}


@task
class TgifQa(VideoQaTask):
    """Test split of FrameQA."""

    name = "tgif_qa"
    title = "TGIF-QA FrameQA test"
    files = (
        DataFile(CSV, SOURCE, LICENCE),
        DataFile(
            "tgif_qa/test_q.json",
            "https://github.com/mbzuai-oryx/Video-ChatGPT",
            LICENCE,
            is_required=False,
            instead_of=CSV,
        ),
        DataFile(
            "tgif_qa/test_a.json",
            "https://github.com/mbzuai-oryx/Video-ChatGPT (with test_q.json)",
            LICENCE,
            is_required=False,
        ),
        DataFile("tgif_qa/gifs", "https://github.com/raingo/TGIF-Release", LICENCE),
    )
    expected = (13_691,)
    paper_ids = ("4/21", "4/26", "4/27")

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        if CSV in found:
            asked = [_question(row) for row in _read(found[CSV])]
        else:
            pairs = read_video_questions(found["tgif_qa/test_q.json"], found.get("tgif_qa/test_a.json"), "")
            asked = [
                Item(question.id, question.text, references=(answer,), cluster=question.file)
                for question, answer in pairs
            ]
        clips = folder_clips(self.name, data, "tgif_qa/gifs", [(item.cluster,) for item in asked])
        items = [dataclasses.replace(item, video=clips[item.cluster,]) for item in asked]
        return checked(self.name, items)


def _read(file: Path) -> list[Record]:
    """Rows by column."""
    lines = read_text(file).split("\n")
    rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    if not rows or tuple(rows[0]) != COLUMNS:
        raise EvalDataError(
            f"{file}: the header is {rows[:1]!r:.100}, expected {', '.join(COLUMNS)} (by tabs)"
        )
    records = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS):
            raise EvalDataError(f"{file}: line {number} has {len(row)} fields, expected {len(COLUMNS)}")
        records.append(Record(f"{file}: line {number}", dict(zip(COLUMNS, row, strict=True))))
    return records


def _question(row: Record) -> Item:
    return Item(
        id=row.text("vid_id"),
        question=row.text("question"),
        references=(row.text("answer"),),
        category={"asks for": TYPES[row.one_of("type", TYPES)]},
        cluster=row.text("gif_name"),
    )

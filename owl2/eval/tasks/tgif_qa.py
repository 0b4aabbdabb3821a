"""TGIF-QA, FrameQA: questions on GIFs that a single frame answers, with one word (Jang et al. 2017).

The makers' Test_frameqa_question.csv has tabs between cells and a question a line, and quotes in it are
characters; `vid_id` is the question, `key` the GIF. Words such as "fiFRAMEQAlace" come from a wrong
replacement in the file and are shown as they are. Video-ChatGPT's two files are read, too. The other three
tasks of the benchmark (counts, actions, transitions) are not in the paper.
"""

from collections.abc import Iterator
from pathlib import Path

from owl2.eval.formats.annotations import video_items
from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import Record, read_table, usable
from owl2.eval.task import DataFile, EvalDataError, Item, Skipped, task
from owl2.eval.tasks.base import VideoQaTask, video_chatgpt_files

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
        *video_chatgpt_files(CSV, LICENCE),
        DataFile("tgif_qa/gifs", "https://github.com/raingo/TGIF-Release", LICENCE),
    )
    expected = (13_691,)
    paper_ids = ("4/21", "4/26", "4/27")

    def read(self, data: Path) -> Iterator[Item | Skipped]:
        found = self.find(data)
        gifs = MediaFolder(self.name, data, "tgif_qa/gifs")
        if CSV not in found:
            yield from video_items(
                found["tgif_qa/test_q.json"], found.get("tgif_qa/test_a.json"), "", gifs.clip
            )
            return
        rows = read_table(found[CSV], quoted=False)
        header = next((tuple(row.fields) for row in rows if isinstance(row, Record)), ())
        if header != COLUMNS:
            raise EvalDataError(f"{found[CSV]}: the header is {header}, expected {', '.join(COLUMNS)} (tabs)")

        def make(row: Record) -> Item:
            return Item(
                id=row.text("vid_id"),
                question=row.text("question"),
                video=gifs.clip(row, row.text("gif_name")),
                references=(row.text("answer"),),
                category={"asks for": TYPES[row.one_of("type", TYPES)]},
                cluster=row.text("gif_name"),
            )

        yield from usable(rows, make)

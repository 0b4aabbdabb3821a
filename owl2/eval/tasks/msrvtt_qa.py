"""MSRVTT-QA: questions made from captions of web videos, answered with one word (Xu et al. 2017).

Two layouts are read: Xu et al.'s test_qa.json (its fields are from memory, not from a source) and
Video-ChatGPT's test_q.json with test_a.json. Clips are `video7010.mp4` and so on. Answers are joined by id: a
published evaluation joined them by position after splitting the questions, and lost half of its score. A
judge's figures move by 8 points and more with the judge's version, so reports name the judge.
"""

from collections.abc import Iterable
from pathlib import Path

from owl2.eval.formats.annotations import video_items
from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import official
from owl2.eval.task import DataFile, Item, Skipped, task
from owl2.eval.tasks.base import VideoQaTask, video_chatgpt_files

SOURCE = "https://github.com/xudejing/video-question-answering"
LICENCE = "research only"


@task
class MsrvttQa(VideoQaTask):
    """Test split."""

    name = "msrvtt_qa"
    title = "MSRVTT-QA test"
    files = (
        DataFile("msrvtt_qa/test_qa.json", SOURCE, LICENCE),
        *video_chatgpt_files("msrvtt_qa/test_qa.json", LICENCE),
        DataFile("msrvtt_qa/videos", SOURCE, LICENCE),
    )
    expected = (72_821,)
    paper_ids = ("4/19", "4/22", "4/23")

    def read(self, data: Path) -> Iterable[Item | Skipped]:
        found = self.find(data)
        file = official(found, self.files, "msrvtt_qa/test_qa.json")
        clips = MediaFolder(self.name, data, "msrvtt_qa/videos")
        return video_items(file, found.get("msrvtt_qa/test_a.json"), "video", clips.clip)

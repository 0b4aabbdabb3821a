"""MSRVTT-QA: questions made from captions of web videos, answered with one word (Xu et al. 2017).

Taken are Xu et al.'s test_qa.json (its fields are [from memory, not from a source]) and Video-ChatGPT's
test_q.json with test_a.json. Clips are `video7010.mp4` and the like. Answers are joined by id: a published
evaluation joined them by position after cutting the questions in parts, and lost half of its score. A judge's
figures move by 8 points and more with the judge's version, so the judge's name stands beside them.
"""

from pathlib import Path

from owl2.eval.formats.annotations import checked, folder_clips, read_video_questions
from owl2.eval.formats.records import official
from owl2.eval.task import DataFile, Item, task
from owl2.eval.tasks.base import VideoQaTask

SOURCE = "https://github.com/xudejing/video-question-answering"
LICENCE = "research only"


@task
class MsrvttQa(VideoQaTask):
    """Test split."""

    name = "msrvtt_qa"
    title = "MSRVTT-QA test"
    files = (
        DataFile("msrvtt_qa/test_qa.json", SOURCE, LICENCE),
        DataFile(
            "msrvtt_qa/test_q.json",
            "https://github.com/mbzuai-oryx/Video-ChatGPT",
            LICENCE,
            is_required=False,
            instead_of="msrvtt_qa/test_qa.json",
        ),
        DataFile(
            "msrvtt_qa/test_a.json",
            "https://github.com/mbzuai-oryx/Video-ChatGPT (with test_q.json)",
            LICENCE,
            is_required=False,
        ),
        DataFile("msrvtt_qa/videos", SOURCE, LICENCE),
    )
    expected = (72_821,)
    paper_ids = ("4/19", "4/22", "4/23")

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        file = official(found, self.files, "msrvtt_qa/test_qa.json")[0]
        pairs = read_video_questions(file, found.get("msrvtt_qa/test_a.json"), "video")
        clips = folder_clips(self.name, data, "msrvtt_qa/videos", [(question.file,) for question, _ in pairs])
        return checked(
            self.name,
            [
                Item(
                    id=question.id,
                    question=question.text,
                    video=clips[question.file,],
                    references=(answer,),
                    category={"asks": question.text.split(" ")[0].lower()},
                    cluster=question.file,
                )
                for question, answer in pairs
            ],
        )

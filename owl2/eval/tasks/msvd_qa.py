"""MSVD-QA: questions made from captions of YouTube clips, answered with one word (Xu et al. 2017).

Taken are Xu et al.'s test_qa.json, which calls a clip by number (its fields are [from memory, but for one
record that an issue shows]), and Video-ChatGPT's test_q.json with test_a.json. The clips' archive has YouTube
names; youtube_mapping.txt (`<name> vid1451` a line) tells which is which. Clips may lie under either name.
"""

from pathlib import Path

from owl2.eval.formats.annotations import checked, folder_clips, read_video_questions
from owl2.eval.formats.records import official, read_text
from owl2.eval.task import DataFile, EvalDataError, Item, task
from owl2.eval.tasks.base import VideoQaTask

SOURCE = "https://github.com/xudejing/video-question-answering"
LICENCE = "research only"
MAPPING = "msvd_qa/youtube_mapping.txt"


@task
class MsvdQa(VideoQaTask):
    """Test split."""

    name = "msvd_qa"
    title = "MSVD-QA test"
    files = (
        DataFile("msvd_qa/test_qa.json", SOURCE, LICENCE),
        DataFile(
            "msvd_qa/test_q.json",
            "https://github.com/mbzuai-oryx/Video-ChatGPT",
            LICENCE,
            is_required=False,
            instead_of="msvd_qa/test_qa.json",
        ),
        DataFile(
            "msvd_qa/test_a.json",
            "https://github.com/mbzuai-oryx/Video-ChatGPT (with test_q.json)",
            LICENCE,
            is_required=False,
        ),
        DataFile(MAPPING, f"{SOURCE} (for clips under their YouTube names)", LICENCE, is_required=False),
        DataFile("msvd_qa/videos", "https://www.cs.utexas.edu/users/ml/clamp/videoDescription/", LICENCE),
    )
    expected = (13_157,)
    paper_ids = ("4/20", "4/24", "4/25")

    def items(self, data: Path) -> list[Item]:
        found = self.find(data)
        file = official(found, self.files, "msvd_qa/test_qa.json")[0]
        pairs = read_video_questions(file, found.get("msvd_qa/test_a.json"), "vid")
        other = _other_names(found[MAPPING]) if MAPPING in found else {}
        names = {question.id: (question.file, *other.get(question.file, ())) for question, _ in pairs}
        clips = folder_clips(self.name, data, "msvd_qa/videos", names.values())
        return checked(
            self.name,
            [
                Item(
                    id=question.id,
                    question=question.text,
                    video=clips[names[question.id]],
                    references=(answer,),
                    category={"asks": question.text.split(" ")[0].lower()},
                    cluster=question.file,
                )
                for question, answer in pairs
            ],
        )


def _other_names(file: Path) -> dict[str, tuple[str, ...]]:
    """The other name of a clip by each of its two."""
    names: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise EvalDataError(
                f"{file}: line {number} is {line!r:.60}, expected a YouTube name and a number"
            )
        names[words[0]], names[words[1]] = (words[1],), (words[0],)
    return names

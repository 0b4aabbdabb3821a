"""MSVD-QA: questions made from captions of YouTube clips, answered with one word (Xu et al. 2017).

Two layouts are read: Xu et al.'s test_qa.json, where a clip is a number (its fields are from memory, except
for one record that an issue shows), and Video-ChatGPT's test_q.json with test_a.json. The clips' archive has
YouTube names; youtube_mapping.txt (lines of `<name> vid1451`) has both. Clips are found under either name.
"""

from collections.abc import Iterable
from pathlib import Path

from owl2.eval.formats.annotations import video_items
from owl2.eval.formats.media import MediaFolder
from owl2.eval.formats.records import official, read_text
from owl2.eval.task import DataFile, EvalDataError, Item, Skipped, task
from owl2.eval.tasks.base import VideoQaTask, video_chatgpt_files

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
        *video_chatgpt_files("msvd_qa/test_qa.json", LICENCE),
        DataFile(MAPPING, f"{SOURCE} (for clips under their YouTube names)", LICENCE, is_required=False),
        DataFile("msvd_qa/videos", "https://www.cs.utexas.edu/users/ml/clamp/videoDescription/", LICENCE),
    )
    expected = (13_157,)
    paper_ids = ("4/20", "4/24", "4/25")

    def read(self, data: Path) -> Iterable[Item | Skipped]:
        found = self.find(data)
        file = official(found, self.files, "msvd_qa/test_qa.json")
        other = _other_names(found[MAPPING]) if MAPPING in found else {}
        clips = MediaFolder(self.name, data, "msvd_qa/videos")
        return video_items(
            file,
            found.get("msvd_qa/test_a.json"),
            "vid",
            lambda row, name: clips.clip(row, name, *other.get(name, ())),
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

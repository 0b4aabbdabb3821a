"""Frames of a clip, as images that are decoded when the first of them is needed.

mPLUG-Owl2 was never trained on video: a clip is shown as uniformly sampled frames, a sequence of images
(paper, section 4.3 and Table 4). The authors did not publish how many; Video-ChatGPT and SEED-Bench's own
files have eight.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from owl2.data.sample import Clip, StoredImage

NUM_FRAMES = 8


@dataclass(frozen=True)
class Frame(StoredImage):
    """One frame of a clip."""

    clip: Clip
    number: int

    def open(self) -> Image.Image:
        """Return the frame in RGB; raises `VideoError` with the video's name."""
        return self.clip.frames(NUM_FRAMES)[self.number].copy()


def frames_of(path: Path, segment: tuple[float, float] | None) -> tuple[Frame, ...]:
    """The sampled frames of a clip, still closed."""
    name = path.name if segment is None else f"{path.name}@{segment[0]:g}-{segment[1]:g}"
    clip = Clip(name, path, segment)
    return tuple(Frame(f"{name}#{number}", path.read_bytes, clip, number) for number in range(NUM_FRAMES))

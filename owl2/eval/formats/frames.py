"""Frames of a clip, as images that are decoded when the first of them is needed.

mPLUG-Owl2 was never trained on video: a clip is shown as uniformly sampled frames, a sequence of images
(paper, section 4.3 and Table 4). The authors did not publish how many; Video-ChatGPT and SEED-Bench's own
files have eight.
"""

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from owl2.data.sample import StoredImage

NUM_FRAMES = 8


@dataclass(frozen=True)
class Clip:
    """A part of a video, decoded when its first frame is needed; a frame that was returned is not kept."""

    path: Path
    segment: tuple[float, float] | None
    _frames: dict[int, Image.Image] = field(default_factory=dict, init=False, compare=False, repr=False)

    def frame(self, number: int) -> Image.Image:
        """Return a frame, and decode the clip first if it has been returned before or not been decoded."""
        from owl2.processor.video import sample_frames

        if number not in self._frames:
            self._frames.update(enumerate(sample_frames(self.path, NUM_FRAMES, segment=self.segment)))
        return self._frames.pop(number)


@dataclass(frozen=True)
class Frame(StoredImage):
    """One frame of a clip."""

    clip: Clip
    number: int

    def open(self) -> Image.Image:
        """Return the frame in RGB; raises `VideoError` with the video's name."""
        return self.clip.frame(self.number)


def frames_of(path: Path, segment: tuple[float, float] | None) -> tuple[Frame, ...]:
    """The sampled frames of a clip, still closed."""
    clip = Clip(path, segment)
    shown = "" if segment is None else f"@{segment[0]:g}-{segment[1]:g}"
    return tuple(
        Frame(f"{path.name}{shown}#{number}", path.read_bytes, clip, number) for number in range(NUM_FRAMES)
    )

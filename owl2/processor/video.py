"""Videos as a few frames: the middles of equal parts of a clip, in order.

The released model was trained on no video; its authors suggest one image for each frame. Middles of equal
parts are what SEED-Bench samples. Frames are counted by decoding, not taken from the file's header, which may
be wrong or absent; only the chosen ones are kept, so memory does not grow with the clip's length. GIFs are
read by Pillow, everything else by PyAV.
"""

import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from owl2.errors import Owl2Error
from owl2.processor.images import load_image

_GIF_MAGIC = (b"GIF87a", b"GIF89a")
_GIF_FRAME_S = 0.1
"""How long players show a GIF frame without a duration."""
_RATE = 25
"""Frames per second of a file that does not say."""
_TOLERANCE_S = 1e-6
"""Rounding of a frame's time."""

Clip = Path | bytes
"""A file, or its content."""


class VideoError(Owl2Error, ValueError):
    """A clip that cannot be read; the message names the file and the reason."""


class NoVideoReaderError(VideoError):
    """The package that reads videos is missing, so no clip can be read."""


def sample_frames(
    clip: Path | str | bytes, num_frames: int, segment: tuple[float, float] | None = None
) -> list[Image.Image]:
    """Return `num_frames` RGB frames: the middles of as many equal parts of the clip.

    Parts have equal numbers of frames, not equal durations. A clip with fewer frames repeats some.

    Args:
        clip: a video or GIF, told apart by content; a path, or the bytes of a file.
        segment: begin and end in seconds of the part to sample from; frames with begin <= time < end.

    Raises:
        VideoError: no such file, no video in it, broken, no frames (in the segment), or no PyAV.
    """
    clip = Path(clip) if isinstance(clip, str) else clip
    name = _name_of(clip)
    if num_frames < 1:
        raise VideoError(f"{name}: {num_frames} frames are requested, expected at least 1")
    if segment and not 0 <= segment[0] < segment[1]:
        raise VideoError(
            f"{name}: the segment {segment[0]:g} to {segment[1]:g} s is empty or begins before 0"
        )
    is_gif = _is_gif(clip)
    try:
        return _sample(clip, num_frames, segment)
    except VideoError:
        raise
    except Exception as error:  # of FFmpeg, PyAV or Pillow: each has its own
        what = "damaged or truncated" if is_gif else "damaged or not a video"
        raise VideoError(f"{name}: {what} ({type(error).__name__}: {error})") from error


def _sample(clip: Clip, num_frames: int, segment: tuple[float, float] | None) -> list[Image.Image]:
    guess = _announced_frames(clip) if segment is None else 0
    count, frames = _pick(clip, segment, _middles(guess, num_frames))
    if count == 0:
        where = f" from {segment[0]:g} to {segment[1]:g} s" if segment else ""
        raise VideoError(f"{_name_of(clip)}: no frames{where}; {_length(clip)}")
    if count < guess / 2:
        raise VideoError(
            f"{_name_of(clip)}: only {count:,} of its {guess:,} frames can be decoded; is it cut short?"
        )
    if count != guess:
        _, frames = _pick(clip, segment, _middles(count, num_frames))
    return [frames[index] for index in _middles(count, num_frames)]


def _middles(count: int, parts: int) -> list[int]:
    """Numbers of the frames in the middles of equal parts of `count` frames."""
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)] if count else []


def _pick(
    clip: Clip, segment: tuple[float, float] | None, wanted: list[int]
) -> tuple[int, dict[int, Image.Image]]:
    """How many frames (of the segment) there are, and the wanted ones by number."""
    begin, end = segment or (0.0, float("inf"))
    count, picked = 0, {}
    for time, frame in _frames(clip, begin):
        if time >= end - _TOLERANCE_S:
            break
        if time < begin - _TOLERANCE_S:
            continue
        if count in wanted:
            picked[count] = _image(frame)
        count += 1
    return count, picked


def _name_of(clip: Clip) -> str:
    return f"video data of {len(clip):,} bytes" if isinstance(clip, bytes) else str(clip)


def _file_of(clip: Clip) -> str | io.BytesIO:
    return io.BytesIO(clip) if isinstance(clip, bytes) else str(clip)


def _is_gif(clip: Clip) -> bool:
    if isinstance(clip, bytes):
        return clip[:6] in _GIF_MAGIC
    try:
        with clip.open("rb") as file:
            return file.read(6) in _GIF_MAGIC
    except OSError as error:
        raise VideoError(f"{_name_of(clip)}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL, or half a surrogate pair, in the path
        raise VideoError(f"{_name_of(clip)!a}: cannot be read ({error})") from error


def _frames(clip: Clip, begin: float) -> Iterator[tuple[float, Any]]:
    """Each frame with its time in seconds, at the latest from `begin` on."""
    if _is_gif(clip):
        yield from _gif_frames(clip)
        return
    if begin > 0:
        frames = _video_frames(clip, begin)
        first = next(frames, None)
        if first is not None and first[0] <= begin + _TOLERANCE_S:
            yield first
            yield from frames
            return
        frames.close()  # seeking went too far, as in many .ts files, or is impossible, as in .h264
    yield from _video_frames(clip, None)


def _gif_frames(clip: Clip) -> Iterator[tuple[float, Any]]:
    with Image.open(_file_of(clip)) as gif:
        time = 0.0
        for frame in ImageSequence.Iterator(gif):
            frame.load()
            yield time, frame
            time += frame.info.get("duration", 0) / 1000 or _GIF_FRAME_S


def _video_frames(clip: Clip, seek: float | None) -> Generator[tuple[float, Any]]:
    """Each frame from the start, or from a key frame near `seek` seconds on if the file can be sought in."""
    av = _av(clip)
    with av.open(_file_of(clip)) as container:
        if not container.streams.video:
            raise VideoError(f"{_name_of(clip)}: there is no video in it, only {_kinds(container)}")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        zero = None if stream.start_time is None else float(stream.start_time * stream.time_base)
        if seek is not None:
            if zero is None:
                return
            try:
                container.seek(stream.start_time + int(seek / stream.time_base), stream=stream)
            except av.FFmpegError:
                return
        rate = stream.guessed_rate or stream.average_rate or _RATE
        for number, frame in enumerate(container.decode(stream)):
            if frame.time is None and seek is not None:
                return
            time = number / float(rate) if frame.time is None else frame.time
            zero = time if zero is None else zero
            yield time - zero, frame


def _announced_frames(clip: Clip) -> int:
    """Number of frames in the header, which saves a second decoding if it is right; 0 if it has none."""
    if _is_gif(clip):
        return 0
    with _av(clip).open(_file_of(clip)) as container:
        return container.streams.video[0].frames if container.streams.video else 0


def _image(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return load_image(frame.copy())  # the next frame takes the place of this one
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _length(clip: Clip) -> str:
    times = [time for time, _ in _frames(clip, 0)]
    return f"its last frame is at {times[-1]:.2f} s" if times else "the file has none at all"


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _av(clip: Clip) -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise NoVideoReaderError(
            f"{_name_of(clip)}: reading videos needs the package av: pip install 'owl2[video]'"
        ) from error
    return av

"""A clip as a few frames: the middles of equal parts of it, in order.

The released model was trained on no video; its authors' answer is one image a frame. Middles of equal parts
are what SEED-Bench samples. Frames are counted by decoding, not taken from the file's header, which may be
wrong or absent; only the chosen ones are kept, so memory does not grow with the clip's length. GIFs
are read by Pillow, everything else by PyAV.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from owl2.errors import Owl2Error

_GIF_MAGIC = (b"GIF87a", b"GIF89a")
_GIF_FRAME_S = 0.1
"""What players show a GIF frame without a duration for."""


Clip = Path | bytes
"""A file, or what is in one."""


class VideoError(Owl2Error, ValueError):
    """A clip that cannot be read; the message names the file and the reason."""


def sample_frames(
    clip: Path | str | bytes, num_frames: int, segment: tuple[float, float] | None = None
) -> list[Image.Image]:
    """Return `num_frames` RGB frames, those in the middles of as many equal parts of the clip.

    Parts are equal in frames, not in time. Of a clip with fewer frames than wanted, some come
    repeatedly.

    Args:
        clip: a video or GIF, told apart by content; a path, or the bytes of a file.
        segment: begin and end in seconds of the part to sample from; frames with begin <= time < end.

    Raises:
        VideoError: no such file, no video in it, broken, no frames (in the segment), or no PyAV.
    """
    clip = Path(clip) if isinstance(clip, str) else clip
    name = _name_of(clip)
    if num_frames < 1:
        raise VideoError(f"{name}: {num_frames} frames are wanted, expected at least 1")
    if segment and not 0 <= segment[0] < segment[1]:
        raise VideoError(
            f"{name}: the segment {segment[0]:g} to {segment[1]:g} s is empty or begins before 0"
        )
    guess = _announced_frames(clip) if segment is None else 0
    count, frames = _pick(clip, segment, _middles(guess, num_frames))
    if count == 0:
        where = f" from {segment[0]:g} to {segment[1]:g} s" if segment else ""
        raise VideoError(f"{name}: no frames{where}; {_length(clip)}")
    if count < guess / 2:
        raise VideoError(f"{name}: only {count:,} of its {guess:,} frames can be decoded; is it cut short?")
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
    count, picked = 0, {}
    for time, frame in _gif_frames(clip) if _is_gif(clip) else _video_frames(clip, segment):
        if segment and time >= segment[1]:
            break
        if segment and time < segment[0]:
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


def _gif_frames(clip: Clip) -> Iterator[tuple[float, Any]]:
    """Each frame with its time in seconds."""
    try:
        with Image.open(_file_of(clip)) as gif:
            time = 0.0
            for frame in ImageSequence.Iterator(gif):
                frame.load()
                yield time, frame
                time += frame.info.get("duration", 0) / 1000 or _GIF_FRAME_S
    except (OSError, EOFError, SyntaxError, UnidentifiedImageError) as error:
        raise VideoError(
            f"{_name_of(clip)}: damaged or truncated ({type(error).__name__}: {error})"
        ) from error


def _video_frames(clip: Clip, segment: tuple[float, float] | None) -> Iterator[tuple[float, Any]]:
    """Each frame with its time in seconds, from the key frame before the segment on."""
    av = _av(clip)
    try:
        with av.open(_file_of(clip)) as container:
            if not container.streams.video:
                raise VideoError(f"{_name_of(clip)}: there is no video in it, only {_kinds(container)}")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start = stream.start_time or 0
            if segment:
                container.seek(start + int(segment[0] / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if segment and frame.time is None:
                    raise VideoError(
                        f"{_name_of(clip)}: its frames have no times, so no segment can be cut out"
                    )
                yield (frame.time or 0.0) - float(start * stream.time_base), frame
    except av.FFmpegError as error:
        raise VideoError(f"{_name_of(clip)}: damaged or not a video ({error})") from error


def _announced_frames(clip: Clip) -> int:
    """Number of frames in the header, which saves a second decoding if it is right; 0 if there is none."""
    if _is_gif(clip):
        return 0
    av = _av(clip)
    try:
        with av.open(_file_of(clip)) as container:
            return container.streams.video[0].frames if container.streams.video else 0
    except av.FFmpegError as error:
        raise VideoError(f"{_name_of(clip)}: damaged or not a video ({error})") from error


def _image(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame.convert("RGB")
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _length(clip: Clip) -> str:
    times = [time for time, _ in (_gif_frames(clip) if _is_gif(clip) else _video_frames(clip, None))]
    return f"its last frame is at {times[-1]:.2f} s" if times else "the file has none at all"


def _kinds(container: Any) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _av(clip: Clip) -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise VideoError(
            f"{_name_of(clip)}: reading videos needs the package av: pip install 'owl2[video]'"
        ) from error
    return av

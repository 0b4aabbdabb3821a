"""Frames of clips: which ones, from which formats, and what is said of files that hold none.

Frame n of every clip is grey of the level 20 x n, so that a frame says its own number.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from owl2.processor.video import VideoError, sample_frames

av = pytest.importorskip("av")

RATE = 5
STEP = 20


def write_clip(
    file: Path, num_frames: int, codec: str = "mpeg4", format_: str | None = None, rate: int = RATE
) -> Path:
    with av.open(str(file), "w", format=format_) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((16, 32, 3), STEP * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return file


def write_gif(file: Path, durations_ms: list[int]) -> Path:
    frames = [Image.new("L", (8, 8), STEP * number) for number in range(len(durations_ms))]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations_ms)
    return file


def numbers(frames: list[Image.Image]) -> list[int]:
    return [round(frame.getpixel((4, 4))[0] / STEP) for frame in frames]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")])
def test_frames_are_the_middles_of_equal_parts(tmp_path: Path, name: str, codec: str) -> None:
    clip = write_clip(tmp_path / name, 12, codec)
    frames = sample_frames(clip, 4)
    assert numbers(frames) == [1, 4, 7, 10]
    assert {frame.mode for frame in frames} == {"RGB"}
    assert {frame.size for frame in frames} == {(32, 16)}
    assert numbers(sample_frames(clip, 1)) == [6]


def test_a_short_clip_gives_frames_repeatedly(tmp_path: Path) -> None:
    assert numbers(sample_frames(write_clip(tmp_path / "a.mp4", 2), 4)) == [0, 0, 1, 1]


def test_a_segment_is_in_seconds_and_its_end_is_outside(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 12)
    assert numbers(sample_frames(clip, 3, segment=(0.8, 1.4))) == [4, 5, 6]
    assert numbers(sample_frames(clip, 12)) == list(range(12))


@pytest.mark.parametrize(
    ("name", "codec", "format_"),
    [
        ("a.ts", "mpeg2video", None),  # seeking ends behind the frame that was sought
        ("a.ts", "libx264", None),  # or at no frame at all
        ("a.h264", "libx264", "h264"),  # frames have no times, and there is no seeking
        ("a.m4v", "mpeg4", "m4v"),  # a stream without a container
        ("a.mkv", "libx264", None),
        ("a.flv", "flv1", None),
    ],
)
def test_segments_have_the_same_frames_in_every_format(
    tmp_path: Path, name: str, codec: str, format_: str | None
) -> None:
    clip = write_clip(tmp_path / name, 12, codec, format_)
    assert numbers(sample_frames(clip, 3, segment=(0.8, 1.4))) == [4, 5, 6]
    assert numbers(sample_frames(clip, 3, segment=(0, 0.6))) == [0, 1, 2]
    assert numbers(sample_frames(clip.read_bytes(), 4, segment=(1.6, 9))) == [8, 9, 10, 11]
    assert numbers(sample_frames(clip, 12)) == list(range(12))
    with pytest.raises(VideoError, match=rf"{name}: no frames from 3 to 4 s; its last frame is at 2\.20 s"):
        sample_frames(clip, 2, segment=(3, 4))


def test_a_segment_ends_where_it_says_though_times_are_rounded(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mpg", 12, "mpeg2video", rate=25)  # begins at 0.54 s: 0.7 - 0.54 < 0.16
    assert numbers(sample_frames(clip, 3, segment=(0.16, 0.28))) == [4, 5, 6]


def test_a_transparent_gif_is_shown_on_white(tmp_path: Path) -> None:
    frames = []
    for left in (0, 2, 4):
        frame = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        frame.paste((0, 0, 0, 255), (left, 0, left + 2, 8))
        frames.append(frame)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    for left, frame in zip((0, 2, 4), sample_frames(tmp_path / "a.gif", 3), strict=True):
        shown = [frame.getpixel((x, 3)) == (0, 0, 0) for x in range(8)]
        assert shown == [left <= x < left + 2 for x in range(8)]


def test_a_gif_is_sampled_alike_and_its_segment_follows_the_durations(tmp_path: Path) -> None:
    gif = write_gif(tmp_path / "a.gif", [100, 100, 500, 100])
    assert numbers(sample_frames(gif, 4)) == [0, 1, 2, 3]
    assert numbers(sample_frames(gif, 2)) == [1, 3]
    assert numbers(sample_frames(gif, 2, segment=(0.15, 0.75))) == [2, 3]


def test_a_file_is_what_its_content_says_not_its_suffix(tmp_path: Path) -> None:
    assert numbers(sample_frames(write_gif(tmp_path / "a.gif", [100] * 3).rename(tmp_path / "a.mp4"), 3)) == [
        0,
        1,
        2,
    ]


def test_a_clip_filmed_with_the_phone_upright_is_turned(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        pixels = np.zeros((16, 32, 3), np.uint8)
        pixels[:, 16:] = 255  # the right half is white
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    one, minus_one = (1 << 16).to_bytes(4), (-(1 << 16)).to_bytes(4, signed=True)
    zero, last = bytes(4), (1 << 30).to_bytes(4)
    as_it_is = one + zero * 3 + one + zero * 3 + last
    clockwise = zero + one + zero + minus_one + zero * 4 + last
    movie, track, rest = clip.read_bytes().split(as_it_is)
    clip.write_bytes(movie + as_it_is + track + clockwise + rest)
    (frame,) = sample_frames(clip, 1)
    assert frame.size == (16, 32)
    assert frame.getpixel((8, 4))[0] < 30 < 220 < frame.getpixel((8, 28))[0]  # what was left is on top


def test_a_segment_behind_the_end_is_an_error_that_says_where_the_end_is(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 10)
    with pytest.raises(VideoError, match=r"a\.mp4: no frames from 7 to 9 s; its last frame is at 1\.80 s"):
        sample_frames(clip, 2, segment=(7, 9))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a video"),
        (b"RIFF but nothing more", "not a video"),
        (b"GIF89a cut", "damaged or truncated"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "broken.avi"
    file.write_bytes(content)
    with pytest.raises(VideoError, match=rf"broken\.avi: .*{said}"):
        sample_frames(file, 2)


def test_a_clip_cut_short_is_an_error_with_the_numbers(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.avi", 12)
    content = clip.read_bytes()
    frames_begin = content.index(b"movi")
    clip.write_bytes(content[: frames_begin + 400])
    with pytest.raises(VideoError, match=r"a\.avi: .*(only \d of its 12 frames|no frames|damaged)"):
        sample_frames(clip, 2)


def test_sound_alone_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match=r"sound\.wav: there is no video in it, only audio"):
        sample_frames(tmp_path / "sound.wav", 2)
    with pytest.raises(VideoError, match=r"none\.mp4: cannot be read \(No such file"):
        sample_frames(tmp_path / "none.mp4", 2)


def test_without_pyav_videos_are_an_error_that_says_what_to_install_and_gifs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, gif = write_clip(tmp_path / "a.mp4", 3), write_gif(tmp_path / "a.gif", [100] * 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install 'owl2\[video\]'"):
        sample_frames(clip, 2)
    assert numbers(sample_frames(gif, 3)) == [0, 1, 2]


@pytest.mark.parametrize("path", ["a\0b.mp4", "\ud800.mp4"])
def test_a_path_that_no_file_can_have_is_an_error(path: str) -> None:
    with pytest.raises(VideoError, match="cannot be read"):
        sample_frames(path, 2)


@pytest.mark.parametrize(("num_frames", "segment"), [(0, None), (2, (3.0, 3.0)), (2, (-1.0, 1.0))])
def test_asking_for_nothing_is_an_error(
    tmp_path: Path, num_frames: int, segment: tuple[float, float]
) -> None:
    with pytest.raises(VideoError, match=r"a\.mp4"):
        sample_frames(write_clip(tmp_path / "a.mp4", 3), num_frames, segment)

"""Images and clips of a sample: what becomes of them, in which order, and what is said of broken ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from owl2.data import sample as sample_module
from owl2.data.dataset import SampleDataset
from owl2.data.loader import BatchLoader
from owl2.data.order import Mixture
from owl2.data.packing import PackSampler
from owl2.data.readers.rows import conversation
from owl2.data.readers.sources import open_source
from owl2.data.readers.storage import StorageError
from owl2.data.sample import Clip, DataError, StoredImage
from owl2.eval.formats.frames import frames_of
from owl2.processor import Encoding, ImageError, Processor, SentencePieceTokenizer
from owl2.processor.video import VideoError
from owl2.train.config import DataConfig, SourceConfig
from owl2.train.metrics import read_metrics
from tests.data.small import jpeg, turns, write_jsonl, write_tar
from tests.processor.test_video import write_clip, write_gif
from tests.train.tiny import run_whole, stage, write_checkpoint

FRAMES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    clip = write_clip(folder / "a.mp4", 12)
    write_gif(folder / "b.gif", [100] * 12)
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[:300])
    (folder / "page.mp4").write_text("<html>404</html>")
    (folder / "p.jpg").write_bytes(jpeg(1))
    return folder


GOOD: list[dict[str, Any]] = [
    {"id": "video", "video": "a.mp4", "conversations": turns("<video>\nWhat happens?", "it brightens")},
    {"id": "gif", "video": ["b.gif"], "conversations": turns("What happens? <|video|>", "it brightens")},
    {
        "id": "llava-video",
        "video": "a.mp4",
        "conversations": turns("<image>\nWhat?", "a clip", "two?", "red"),
    },
    {
        "id": "both",
        "image": "p.jpg",
        "video": "a.mp4",
        "conversations": turns("<image> or", "an owl", "<video>?", "a clip"),
    },
    {"id": "text", "conversations": turns("What does <video> mean in HTML?", "a clip")},
]
BROKEN: list[dict[str, Any]] = [
    {"id": "cut", "video": "cut.mp4", "conversations": turns("<video>what?", "x")},
    {"id": "page", "video": "page.mp4", "conversations": turns("<video>what?", "x")},
    {"id": "gone", "video": "gone.mp4", "conversations": turns("<video>what?", "x")},
    {"id": "marks", "video": ["a.mp4", "b.gif"], "conversations": turns("<video>what?", "x")},
    {"id": "twice", "video": "a.mp4", "conversations": turns("<video><video>what?", "x")},
    {"id": "no-image", "video": "a.mp4", "image": "p.jpg", "conversations": turns("<video>what?", "x")},
]


def open_dataset(
    folder: Path, rows: list[dict[str, Any]], processor: Processor, kind: str = "none"
) -> SampleDataset:
    source = open_source("clips", write_jsonl(folder / f"{len(rows)}-{kind}.jsonl", rows))
    mixture = Mixture([len(rows)], [1.0], seed=0)
    return SampleDataset([source], [kind], mixture, processor, max_tokens=512, num_frames=FRAMES)


def by_key(dataset: SampleDataset) -> dict[str, Any]:
    return {key.partition(":")[2]: item for key, item in (dataset[n] for n in range(len(dataset.sources[0])))}


def greys(images: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(image).mean())) for image in images]


def test_a_clip_becomes_evenly_spaced_frames_in_its_place(folder: Path, processor: Processor) -> None:
    found = by_key(open_dataset(folder, GOOD, processor))
    for key in ("video", "gif", "llava-video"):
        assert isinstance(found[key], Encoding), found[key]
        assert greys(found[key].images) == pytest.approx([20, 120, 200], abs=25)
        assert found[key].ids.count(processor.image_token_id) == FRAMES * processor.tokens_per_image
    assert len(found["both"].images) == 1 + FRAMES
    assert greys(found["both"].images[1:]) == greys(found["video"].images)
    assert not found["text"].images


def test_the_length_of_a_clip_is_known_before_it_is_opened(folder: Path, processor: Processor) -> None:
    dataset = open_dataset(folder, GOOD, processor)
    for n in range(len(GOOD)):
        _, item = dataset[n]
        assert dataset.size(n) == (len(item.ids), len(item.images))  # type: ignore[union-attr]


def test_frames_of_a_clip_are_cut_and_mirrored_alike_and_images_of_a_sample_each_in_their_own_way() -> None:
    columns = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    frame = Image.fromarray(np.stack([columns] * 3, axis=-1))

    class Still(Clip):
        def frames(self, num_frames: int) -> tuple[Image.Image, ...]:
            return (frame,) * num_frames

    class Shown(StoredImage):
        def open(self) -> Image.Image:
            return frame

    said = turns("<image><image><video>", "x")
    sample = conversation("s", "a", said, lambda name: Shown(name, bytes), images=["p"] * 2, videos=["v"])
    for part in sample.messages[0]["content"]:
        if part["type"] == "video":
            part["video"] = Still("v", bytes)
    (question, _) = sample.open("crop_flip", seed=1, num_frames=4)
    one, two, *frames = [part["image"].tobytes() for part in question["content"]]
    assert len(frames) == 4
    assert len(set(frames)) == 1
    assert len({one, two, frames[0]}) == 3


def test_broken_clips_are_bad_samples_with_a_kind_and_a_reason(folder: Path, processor: Processor) -> None:
    found = by_key(open_dataset(folder, BROKEN, processor))
    kinds = {key.lstrip("#"): item["kind"] for key, item in found.items()}
    assert sorted(kinds.values()) == sorted(
        ["video cannot be read"] * 2 + ["image is missing"] + ["image marks and images differ"] * 3
    )
    assert "cut.mp4: " in found["cut"]["reason"]
    said = BROKEN[4]["conversations"]
    with pytest.raises(DataError, match=r"sample twice has 0 image mark.*, 2 video mark.s. and 1 video"):
        conversation("s", "twice", said, lambda name: StoredImage(name, bytes), videos=["a.mp4"])


def test_a_caption_that_says_left_is_not_mirrored(tmp_path: Path, processor: Processor) -> None:
    columns = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    image = Image.fromarray(np.stack([columns] * 3, axis=-1))
    image.save(tmp_path / "ramp.png")
    ramp = (tmp_path / "ramp.png").read_bytes()
    members = {"0.png": ramp, "0.txt": b"an owl left of a cup", "1.png": ramp, "1.txt": b"an owl on a cup"}
    write_tar(tmp_path / "0.tar", members)
    mixture = Mixture([2], [1.0], seed=0)
    dataset = SampleDataset([open_source("web", tmp_path)], ["flip"], mixture, processor, max_tokens=512)
    mirrored: dict[str, set[bool]] = {"0": set(), "1": set()}
    for n in range(40):
        key, item = dataset[n]
        assert isinstance(item, Encoding)
        pixels = np.asarray(item.images[0], int)[0, :, 0]
        mirrored[key[-1]].add(bool(pixels[0] > pixels[-1]))
    assert mirrored == {"0": {False}, "1": {False, True}}


def test_training_on_clips_images_and_text_with_broken_ones_among_them(
    folder: Path, sentencepiece_tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    path = write_jsonl(folder / "all.jsonl", GOOD + BROKEN[:2])
    sources = [SourceConfig(name="clips", path=path)]
    data = DataConfig(
        sources=sources, max_tokens=200, pack_tokens=200, num_frames=FRAMES, max_bad_fraction=1.0
    )
    checkpoint = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
    config = stage(
        tmp_path / "run",
        checkpoint,
        folder,
        data=data,
        steps=10,
        global_batch_size=7,
        micro_batch_size=1,
        accumulation=1,
    )
    run_whole(config)
    rows = read_metrics(config.run)
    assert {row["images"] for row in rows} == {4 * FRAMES + 1}, "every sample once a step"
    bad = [json.loads(line) for line in (config.run / "bad_samples.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in bad] == ["video cannot be read"] * 20


def test_packs_hold_the_frames_they_were_planned_with(
    folder: Path, processor: Processor, tmp_path: Path
) -> None:
    dataset = open_dataset(folder, GOOD, processor)
    sampler = PackSampler(dataset.size, len(GOOD), 120, 1, 0, 0, 1)
    batches = BatchLoader(dataset, sampler, num_workers=0, bad_samples=tmp_path / "bad", max_bad_fraction=0)
    found = [batch for batch in batches if batch]
    assert sum(len(batch.pixel_values) for batch in found) == 4 * FRAMES + 1
    assert all(len(batch.input_ids) <= 120 for batch in found)


def test_an_exception_of_a_library_of_its_own_costs_the_sample_and_names_it() -> None:
    def fail() -> bytes:
        raise RuntimeError("libodd: state 7")

    with pytest.raises(ImageError, match=r"a.jpg: cannot be read \(RuntimeError: libodd: state 7\)"):
        StoredImage("a.jpg", fail).open()
    with pytest.raises(VideoError, match=r"a.mp4: cannot be read \(RuntimeError: libodd: state 7\)"):
        Clip("a.mp4", fail).frames(3)

    def refuse() -> bytes:
        raise StorageError("s3://corpora/a is down")

    for open_it in (StoredImage("a.jpg", refuse).open, lambda: Clip("a.mp4", refuse).frames(3)):
        with pytest.raises(StorageError):  # no fault of the sample
            open_it()


def test_a_clip_is_decoded_once_however_often_its_frames_are_opened(folder: Path) -> None:
    before = sample_module._frames_of_file.cache_info().misses
    frames = frames_of(folder / "a.mp4", None)
    opened = [frame.open() for _ in range(3) for frame in frames]
    assert sample_module._frames_of_file.cache_info().misses == before + 1
    assert [image.tobytes() for image in opened[:8]] == [image.tobytes() for image in opened[8:16]]
    opened[0].thumbnail((2, 2))
    assert frames[0].open().size == opened[1].size, "what is handed out is a copy"
    frames_of(folder / "b.gif", (0.0, 0.5))[0].open()
    assert sample_module._frames_of_file.cache_info().misses == before + 2

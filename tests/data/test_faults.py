"""Every fault at once: each is left out, counted by source and kind, and the rest comes in its own order.

Faults of files (truncated, empty, missing, a bomb, a broken shard), of text (not JSON, not UTF-8, half a
surrogate pair) and of conversations (roles, marks); and images that are odd but whole, which are used.
"""

import io
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from owl2.data.dataset import SampleDataset
from owl2.data.inspect.inspection import inspect_source
from owl2.data.loader import BatchLoader
from owl2.data.order import Mixture, StepSampler
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError
from owl2.processor import Processor, SentencePieceTokenizer
from owl2.train.config import DataConfig, SourceConfig
from owl2.train.metrics import read_metrics
from tests.data.small import jpeg, turns, write_tar
from tests.train.tiny import run_whole, stage, write_checkpoint

STEPS = 100
MICRO_BATCH_SIZE = 4


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def odd_images() -> dict[str, bytes]:
    """Images that are unusual and whole."""
    image = Image.open(io.BytesIO(jpeg(7)))
    frames = [Image.new("P", (12, 12), colour) for colour in (3, 90)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    grey = Image.fromarray((np.arange(400, dtype=np.uint16) * 160).reshape(20, 20))
    return {
        "png-named.jpg": encoded(image, "PNG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "palette.png": encoded(image.convert("P"), "PNG"),
        "sixteen-bit.png": encoded(grey, "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "rotated.jpg": encoded(image, "JPEG", exif=rotated),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
    }


def talk_lines(folder: Path) -> Iterator[tuple[bytes, str | None]]:
    """Lines of a JSONL file, each with the kind of its fault; writes their images."""

    def row(key: str, *values: str, image: str | None = None, **others: Any) -> bytes:
        value = {"id": key, "conversations": turns(*values), **others}
        return json.dumps(value if image is None else {**value, "image": image}).encode()

    def with_image(name: str, data: bytes | None) -> bytes:
        if data is not None:
            (folder / name).write_bytes(data)
        return row(name, "<image>what is it?", "an owl", image=name)

    for number in range(12):
        yield with_image(f"good-{number}.jpg", jpeg(number)), None
        yield row(f"text-{number}", "what is it?", f"two owls {number}"), None
    for name, data in odd_images().items():
        yield with_image(name, data), None
    yield with_image("cut.jpg", jpeg(3)[:-200]), "image cannot be read"
    yield with_image("empty.jpg", b""), "image cannot be read"
    yield with_image("page.jpg", b"<html>404</html>"), "image cannot be read"
    yield with_image("bomb.png", bomb()), "image cannot be read"
    yield with_image("gone.jpg", None), "image is missing"
    yield b'{"id": "torn", "conversations": [{"from": "hum', "not a JSON object"
    yield b'{"id": "latin", "conversations": [{"from": "human", "value": "caf\xe9"}]}', "text is not UTF-8"
    yield row("half", "what is it?", "half \ud800"), "text is not UTF-8"
    yield row("bot", "x", "y").replace(b'"gpt"', b'"bot"'), "turns do not alternate"
    yield row("no-image", "<image>what is it?", "an owl"), "image marks and images differ"
    yield row("two-marks", "<image><image>?", "an owl", image="good-0.jpg"), "image marks and images differ"
    yield row("image-in-answer", "what is it?", "<image>", image="good-0.jpg"), "unusable conversation"
    yield row("monologue", "what is it?"), "no answer within the limit"
    yield row("clip", "<video>what is it?", "an owl", video="page.jpg"), "video cannot be read"
    yield row("nul", "<image>?", "an owl", image="a\0.jpg"), "path is not a path"
    yield row("half-path", "<image>?", "an owl", image="\ud83d.jpg"), "path is not a path"
    yield row("no-path", "<image>?", "an owl", image=[None]), "image is missing"  # type: ignore[arg-type]
    yield row("long-path", "<image>?", "an owl", image="a" * 5000), "image cannot be read"
    yield row("folder", "<image>?", "an owl", image="."), "image cannot be read"
    yield row("through-a-file", "<image>?", "an owl", image="good-0.jpg/a.jpg"), "image cannot be read"
    yield row("half-\ud800-key", "what is it?", "an owl"), None
    yield b"[" * 100_000, "not a JSON object"
    yield b'{"conversations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a JSON object"
    yield b'["a", "list"]', "not a JSON object"
    yield row("numbers", "what is it?", "an owl", image=7), "unknown row format"  # type: ignore[arg-type]
    yield b'{"conversations": {"from": "human"}}', "unknown row format"
    yield b'{"conversations": [{"from": ["human"], "value": "a"}]}', "turns do not alternate"
    yield b'{"conversations": [{"from": "human", "value": [1]}]}', "unknown row format"
    yield row("two", "what is it?", "an owl", image="good-0.jpg", images=["good-1.jpg"]), "unknown row format"
    yield row("img", "what is it?", "an owl", img="good-0.jpg"), "media is not read"


def web_members() -> Iterator[tuple[dict[str, bytes], str | None]]:
    """Pairs of a tar shard, each with the kind of its fault."""
    for number in range(10):
        yield {f"good{number}.jpg": jpeg(number), f"good{number}.txt": b"an owl on a branch"}, None
    yield {"cut.jpg": jpeg(5)[:-250], "cut.txt": b"an owl"}, "image cannot be read"
    yield {"empty.jpg": b"", "empty.txt": b"an owl"}, "image cannot be read"
    yield {"latin.jpg": jpeg(5), "latin.txt": b"caf\xe9"}, "text is not UTF-8"
    yield {"blank.jpg": jpeg(5), "blank.txt": b" \n"}, "caption is blank"
    yield {"mark.jpg": jpeg(5), "mark.txt": b"\xef\xbb\xbf \r\n"}, "caption is blank"


class Faulty:
    """Two sources with every fault in them, in shuffled places."""

    def __init__(self, folder: Path):
        rng = random.Random(2)
        lines, pairs = list(talk_lines(folder)), list(web_members())
        rng.shuffle(lines)
        rng.shuffle(pairs)
        (folder / "talk.jsonl").write_bytes(b"".join(line + b"\n" for line, _ in lines))
        (folder / "web").mkdir()
        write_tar(
            folder / "web" / "00000.tar", {name: data for pair, _ in pairs for name, data in pair.items()}
        )
        whole = write_tar(folder / "web" / "00001.tar", {"a.jpg": jpeg(1), "a.txt": b"an owl"}).read_bytes()
        (folder / "web" / "00001.tar").write_bytes(whole[:700])
        self.kinds = {"talk": [kind for _, kind in lines], "web": [kind for _, kind in pairs]}
        """The kind of fault by source and index; None for samples to train on."""
        self.paths = [folder / "talk.jsonl", folder / "web"]

    def expected(
        self, mixture: Mixture, steps: int = STEPS
    ) -> tuple[list[tuple[str, int]], Counter[tuple[str, str]]]:
        """(source, index) of the usable draws in order, and the number of the others by source and kind."""
        good, bad = [], Counter({("web", "shard is damaged"): 1})
        for n in range(steps * MICRO_BATCH_SIZE):
            name, index = ("talk", "web")[mixture[n].source], mixture[n].index
            if (kind := self.kinds[name][index]) is None:
                good.append((name, index))
            else:
                bad[name, kind] += 1
        return good, bad


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    return Faulty(tmp_path_factory.mktemp("faulty"))


def open_batches(faulty: Faulty, processor: Processor, log: Path, **options: Any) -> BatchLoader:
    sources = [open_source(path.stem, path) for path in faulty.paths]
    mixture = Mixture([len(source) for source in sources], [2, 1], seed=4)
    dataset = SampleDataset(sources, ["none", "crop_flip"], mixture, processor, max_tokens=512)
    options = {"start_step": 0, "num_workers": 0, "max_bad_fraction": 1.0, **options}
    sampler = StepSampler(
        micro_batch_size=MICRO_BATCH_SIZE,
        accumulation=1,
        ranks=1,
        rank=0,
        start_step=options.pop("start_step"),
        steps=STEPS,
    )
    return BatchLoader(dataset, sampler, bad_samples=log, **options)


def keys_of(batches: BatchLoader) -> list[str]:
    return [key for batch in batches if batch for key in batch.keys]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_fault_at_once_is_counted_exactly_and_the_rest_comes_in_order(
    faulty: Faulty, processor: Processor, tmp_path: Path, num_workers: int
) -> None:
    batches = open_batches(faulty, processor, tmp_path / "bad.jsonl", num_workers=num_workers)
    keys = keys_of(batches)
    good, bad = faulty.expected(batches.dataset.mixture)
    sources = batches.dataset.sources
    named = {"talk": sources[0], "web": sources[1]}
    assert keys == [f"{name}:{named[name][index].key}" for name, index in good]
    assert batches.num_bad_by_kind == bad
    assert {name for name, _ in bad} == {"talk", "web"}
    assert {kind for kinds in faulty.kinds.values() for kind in kinds if kind} == {
        kind for _, kind in bad if kind != "shard is damaged"
    }, "every fault occurred"
    recorded = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert Counter((row["source"], row["kind"]) for row in recorded) == bad
    assert all(row["key"] and row["reason"] for row in recorded)
    assert (recorded[0]["source"], recorded[0]["key"]) == ("web", "00001.tar")


def test_a_resumed_run_draws_the_same_samples_around_the_faults(
    faulty: Faulty, processor: Processor, tmp_path: Path
) -> None:
    whole = [batch.keys if batch else () for batch in open_batches(faulty, processor, tmp_path / "a.jsonl")]
    log = tmp_path / "b.jsonl"
    rest = [batch.keys if batch else () for batch in open_batches(faulty, processor, log, start_step=57)]
    assert rest == whole[57:]
    assert "shard is damaged" not in log.read_text(), "recorded once, at the beginning"


def test_odd_images_are_used_and_look_right(faulty: Faulty, processor: Processor) -> None:
    found = inspect_source(open_source("talk", faulty.paths[0]), processor, num_opened=0, num_shown=100)
    shown = {sample.key.removeprefix("talk:"): sample.images for sample in found.shown}
    assert odd_images().keys() <= shown.keys()
    (plain,), (cmyk,), (named_wrong,) = shown["good-7.jpg"], shown["cmyk.jpg"], shown["png-named.jpg"]
    assert np.abs(np.asarray(plain, int) - np.asarray(named_wrong, int)).mean() < 1
    assert np.abs(np.asarray(plain, int) - np.asarray(cmyk, int)).mean() < 12
    (rotated,) = shown["rotated.jpg"]
    upright = np.rot90(np.asarray(plain, int), -1)
    assert np.abs(upright - np.asarray(rotated, int)).mean() < 6
    (sixteen,) = shown["sixteen-bit.png"]
    assert np.asarray(sixteen).max() > 200, "scaled, not clipped"
    assert Counter(row["kind"] for row in found.bad) == Counter(
        kind for kind in faulty.kinds["talk"] if kind
    ), "inspection counts what training leaves out"


def test_a_run_started_again_meets_the_same_faults_and_goes_on(
    faulty: Faulty, processor: Processor, tmp_path: Path
) -> None:
    """One row used to stop a run at its draw, and again there after every restart."""
    first = open_batches(faulty, processor, tmp_path / "bad.jsonl", max_bad_fraction=0.9)
    micro_batches = first.micro_batches()
    before = [next(micro_batches) for _ in range(30)]
    again = open_batches(faulty, processor, tmp_path / "bad.jsonl", start_step=20, max_bad_fraction=0.9)
    again.num_drawn, again.num_bad = first.num_drawn, first.num_bad.copy()
    after = [batch for batch, _ in again.micro_batches()]
    assert [batch.keys if batch else () for batch in after[:10]] == [
        batch.keys if batch else () for batch, _ in before[20:]
    ]
    assert again.num_bad.total() > first.num_bad.total()


def test_more_than_one_shard_and_one_in_a_hundred_damaged_is_an_error(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", {"a.jpg": jpeg(1), "a.txt": b"an owl"})
    (tmp_path / "1.tar").write_bytes(b"<html>404</html>" * 100)
    source = open_source("web", tmp_path)
    assert (len(source), [file for file, _ in source.lost]) == (3, ["1.tar"])
    (tmp_path / "3.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.tar is not a readable tar"):
        open_source("web", tmp_path)


def test_too_many_faults_stop_the_run(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "faulty").mkdir()
    faulty = Faulty(tmp_path / "faulty")
    with pytest.raises(
        DataError,
        match=r"web: about 15 of 30 samples are lost, more than 1\.0%; 1 file.* left out .*00001\.tar is not",
    ):
        open_batches(faulty, processor, tmp_path / "bad.jsonl", max_bad_fraction=0.01)
    (faulty.paths[1] / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"samples could not be used .* more than 1\.0%"):
        keys_of(open_batches(faulty, processor, tmp_path / "bad.jsonl", max_bad_fraction=0.01))


@pytest.mark.parametrize("pack_tokens", [None, 512])
def test_training_on_every_fault_at_once_finishes_with_exact_counts(
    faulty: Faulty, sentencepiece_tokenizer: SentencePieceTokenizer, tmp_path: Path, pack_tokens: int | None
) -> None:
    sources = [SourceConfig(name=path.stem, path=path, weight=2 - n) for n, path in enumerate(faulty.paths)]
    data = DataConfig(sources=sources, max_tokens=512, seed=4, max_bad_fraction=1.0, pack_tokens=pack_tokens)
    checkpoint = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
    batch = {"global_batch_size": MICRO_BATCH_SIZE, "accumulation": 1}
    batch["micro_batch_size"] = 1 if pack_tokens else MICRO_BATCH_SIZE
    config = stage(tmp_path / "run", checkpoint, tmp_path, data=data, steps=25, **batch)
    run_whole(config)
    assert [row["step"] for row in read_metrics(config.run)] == list(range(1, 26))
    rows = [json.loads(line) for line in (config.run / "bad_samples.jsonl").read_text().splitlines()]
    sizes = [len(kinds) for kinds in faulty.kinds.values()]
    _, bad = faulty.expected(Mixture(sizes, [2, 1], seed=4), steps=25)
    assert Counter((row["source"], row["kind"]) for row in rows) == bad
    assert len(bad) > 10

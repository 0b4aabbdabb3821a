"""Corpora at URLs, over real HTTP: an S3 server (moto) and a web server, both on loopback."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import boto3
import pytest
from moto.server import ThreadedMotoServer

from owl2.data.dataset import SampleDataset
from owl2.data.loader import BatchLoader
from owl2.data.order import Mixture, StepSampler
from owl2.data.readers import storage
from owl2.data.readers.base import Source
from owl2.data.readers.sources import open_source
from owl2.data.readers.storage import Location, StorageError, look_at, read_bytes
from owl2.data.sample import DataError, Sample, StoredImage
from owl2.processor import Processor
from tests.data.small import NUM_IMAGES, jpeg, turns, write_jsonl, write_tar
from tests.data.test_loader import assert_same
from tests.data.web import Server


@pytest.fixture(scope="module")
def bucket(corpora: Path) -> Iterator[str]:
    """The tiny corpora in a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "owl")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "owl")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.delenv("AWS_CA_BUNDLE", raising=False)
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpora")
        for file in sorted(corpora.rglob("*")):
            if file.is_file():
                client.upload_file(str(file), "corpora", str(file.relative_to(corpora)))
        yield "s3://corpora"
    server.stop()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    """An empty folder, `tmp_path / "web"`, on the web."""
    (tmp_path / "web").mkdir()
    with Server(tmp_path / "web").running() as server:
        yield server


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat requests without waiting."""
    monkeypatch.setattr(storage, "WAITS_S", (0.0, 0.0, 0.0, 0.0))


def images_of(sample: Sample) -> list[bytes]:
    parts = [part for message in sample.messages for part in message["content"] if isinstance(part, dict)]
    return [part["image"].read() for part in parts if isinstance(part.get("image"), StoredImage)]


def assert_same_samples(ours: Source, theirs: Source) -> None:
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
        a, b = ours[index], theirs[index]
        assert (a.key, a.text, images_of(a)) == (b.key, b.text, images_of(b))


@pytest.mark.parametrize("shuffle", ["samples", "slices"])
def test_shards_in_a_bucket_are_the_same_samples_as_in_a_folder(
    bucket: str, corpora: Path, shuffle: str
) -> None:
    ours = open_source("captions", f"{bucket}/captions", shuffle=shuffle)  # type: ignore[arg-type]
    assert len(ours) == NUM_IMAGES
    assert_same_samples(ours, open_source("captions", corpora / "captions"))


def test_rows_in_a_bucket_and_their_images_are_the_same_as_in_a_folder(bucket: str, corpora: Path) -> None:
    assert_same_samples(
        open_source("chat", f"{bucket}/chat.jsonl"), open_source("chat", corpora / "chat.jsonl")
    )
    elsewhere = open_source("chat", corpora / "chat.jsonl", image_root=bucket)
    assert_same_samples(elsewhere, open_source("chat", corpora / "chat.jsonl"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_bucket_are_those_from_the_disk(
    bucket: str, corpora: Path, processor: Processor, tmp_path: Path, num_workers: int
) -> None:
    """Also in workers, which are forked from a process that has spoken to the storage before."""
    names = ("captions", "chat.jsonl")
    theirs = open_batches([corpora / name for name in names], processor, tmp_path, num_workers=0)
    ours = open_batches([f"{bucket}/{name}" for name in names], processor, tmp_path, num_workers=num_workers)
    assert_same(list(ours), list(theirs))


def open_batches(
    places: Sequence[Location], processor: Processor, folder: Path, *, num_workers: int
) -> BatchLoader:
    sources = [open_source(PurePosixPath(place).stem, place) for place in places]
    dataset = SampleDataset(
        sources, ["none"] * 2, Mixture([len(s) for s in sources], [1, 1], 0), processor, 512
    )
    sampler = StepSampler(micro_batch_size=3, accumulation=2, ranks=1, rank=0, start_step=0, steps=4)
    log = folder / "bad.jsonl"
    return BatchLoader(dataset, sampler, num_workers=num_workers, bad_samples=log, max_bad_fraction=0.0)


def test_what_is_not_in_a_bucket_is_named(bucket: str, processor: Processor, tmp_path: Path) -> None:
    for path in (f"{bucket}/nowhere", "s3://no-such-bucket/shards", f"{bucket}/nowhere.jsonl"):
        with pytest.raises(DataError, match=f"web: .*{path}"):
            open_source("web", path)
    rows = [{"id": "x", "image": "nowhere.jpg", "conversations": turns("<image>?", "an owl")}]
    source = open_source("web", write_jsonl(tmp_path / "rows.jsonl", rows), image_root=bucket)
    _, bad = SampleDataset([source], ["none"], Mixture([1], [1.0], 0), processor, 99)[0]
    assert isinstance(bad, dict)
    assert (bad["key"], bad["kind"]) == ("web:x", "image is missing")


def write_shard(folder: Path, num_pairs: int) -> None:
    members = {}
    for number in range(num_pairs):
        members |= {f"{number:04d}.jpg": jpeg(number % 20), f"{number:04d}.txt": b"owl %d" % number}
    write_tar(folder / "0.tar", members)


def test_a_slice_of_a_shard_is_one_request_and_a_single_sample_two(web: Server, tmp_path: Path) -> None:
    write_shard(tmp_path / "web", 250)
    slices = open_source("web", web.url)
    assert slices.in_slices
    web.requests.clear()
    assert [slices[index].text.strip() for index in range(250)] == [f"owl {n}" for n in range(250)]
    assert len(web.requests) == 3, "two slices of 100 and one of 50"
    assert sum(len(images_of(slices[index])) for index in range(250)) == 250
    assert len(web.requests) == 3
    samples = open_source("web", web.url, shuffle="samples")
    web.requests.clear()
    sample = samples[7]
    assert len(web.requests) == 1, "packing asks for the caption alone"
    assert images_of(sample) == images_of(slices[7])
    assert len(web.requests) == 2


def test_a_shard_is_scanned_once_and_read_in_large_parts(web: Server, tmp_path: Path) -> None:
    write_shard(tmp_path / "web", 50)
    open_source("web", web.url)
    scanned = [request for request in web.requests if "0.tar" in request]
    assert len(scanned) == 1
    open_source("web", web.url)
    assert [request for request in web.requests if "0.tar" in request] == scanned


def test_images_whose_captions_lie_far_from_them_are_read_one_by_one(web: Server, tmp_path: Path) -> None:
    ballast = {f"{number}.bin": bytes(50_000) for number in range(20)}
    members = {"a.jpg": jpeg(1), "b.jpg": jpeg(2), **ballast, "a.txt": b"one", "b.txt": b"two"}
    write_tar(tmp_path / "web" / "0.tar", members)
    source = open_source("web", web.url)
    web.requests.clear()
    assert (source[0].text.strip(), images_of(source[1])) == ("one", [jpeg(2)])
    assert all(int(last) - int(first) < 5000 for first, last in map(range_of, web.requests))


def range_of(request: str) -> list[str]:
    return request.rpartition("=")[2].split("-")


@pytest.mark.usefixtures("at_once")
def test_a_request_that_fails_is_repeated_and_each_time_is_said(
    web: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "web" / "a.txt").write_bytes(b"an owl")
    web.failures = [500, 429]
    assert read_bytes(f"{web.url}/a.txt") == b"an owl"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert f"{web.url}/a.txt could not be read" in said[0]
    assert "500" in said[0]
    assert "attempt 3 in" in said[1]


@pytest.mark.usefixtures("at_once")
def test_storage_that_keeps_failing_stops_the_run_and_is_no_bad_sample(
    web: Server, tmp_path: Path, processor: Processor
) -> None:
    (tmp_path / "web" / "a.jpg").write_bytes(jpeg(1))
    rows = [{"id": "x", "image": "a.jpg", "conversations": turns("<image>?", "an owl")}]
    source = open_source("web", write_jsonl(tmp_path / "rows.jsonl", rows), image_root=web.url)
    dataset = SampleDataset([source], ["none"], Mixture([1], [1.0], 0), processor, 99)
    assert not isinstance(dataset[0][1], dict)
    web.failures = [503] * 9
    with pytest.raises(StorageError, match=rf"{web.url}/a.jpg could not be read: .*503.* \(attempt 5 of 5\)"):
        dataset[0]
    assert len(web.failures) == 4


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", ["a\0.jpg", "\ud83d.jpg", "http://[bad/a.jpg", "a b?c#d.jpg"])
def test_an_address_that_cannot_be_is_a_bad_sample_and_no_storage_that_is_down(
    web: Server, tmp_path: Path, processor: Processor, name: str
) -> None:
    rows = [{"id": "x", "image": name, "conversations": turns("<image>?", "an owl")}]
    source = open_source("web", write_jsonl(tmp_path / "rows.jsonl", rows), image_root=web.url)
    _, bad = SampleDataset([source], ["none"], Mixture([1], [1.0], 0), processor, 99)[0]
    assert isinstance(bad, dict)
    assert bad["kind"] in ("path is not a path", "image is missing")


@pytest.mark.usefixtures("at_once")
def test_what_is_refused_or_missing_is_not_asked_for_again(web: Server) -> None:
    web.failures = [403]
    with pytest.raises(StorageError, match=r"403.*\(attempt 1 of 5\)"):
        read_bytes(f"{web.url}/a.txt")
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{web.url}/a.txt")
    assert len(web.requests) == 2


def test_a_server_without_ranges_is_an_error_and_never_the_wrong_bytes(web: Server, tmp_path: Path) -> None:
    (tmp_path / "web" / "a.txt").write_bytes(b"0123456789")
    web.has_ranges = False
    with pytest.raises(
        StorageError, match="10 bytes came in answer to a request for 4 from 2 on; the server must"
    ):
        read_bytes(f"{web.url}/a.txt", 2, 4)


def test_storage_of_an_unknown_kind_is_named() -> None:
    with pytest.raises(StorageError, match="fsspec knows no storage owl://"):
        look_at("owl://corpora/a")


def test_a_file_of_rows_that_changed_is_fetched_again(web: Server, tmp_path: Path) -> None:
    for answer in ("an owl", "two red apples"):
        rows = [{"id": "x", "conversations": turns("?", answer)}]
        (tmp_path / "web" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert open_source("web", f"{web.url}/rows.jsonl")[0].text.endswith(answer)
    web.requests.clear()
    open_source("web", f"{web.url}/rows.jsonl")
    assert web.requests == [], "only its size and date are asked for"

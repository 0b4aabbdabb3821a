"""Packs: full, even, exact in length before an image is opened, and without influence on what is learned."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.packing import random_step
from owl2.data.dataset import SampleDataset
from owl2.data.loader import BatchLoader
from owl2.data.order import Mixture, StepSampler
from owl2.data.packing import PackSampler, Size, deal, pack
from owl2.data.readers.sources import open_source
from owl2.processor import Encoding, Processor, SentencePieceTokenizer
from owl2.train.config import DataConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from tests.data.small import turns, write_jsonl
from tests.train.splits import OPTIM
from tests.train.tiny import run_until, run_whole, stage, weights, write_checkpoint

BATCH = 40
LIMIT, PACK = 120, 160
STEPS = 5


def sums(sizes: Sequence[Size], packs: Sequence[Sequence[int]]) -> list[Size]:
    return [
        Size(sum(sizes[i].tokens for i in members), sum(sizes[i].images for i in members))
        for members in packs
    ]


@pytest.mark.parametrize("capacity", [2048, 4096])
def test_packs_of_the_instruction_mixture_are_95_percent_full(capacity: int) -> None:
    rng = random.Random(0)
    useful = 0
    room = 0
    for _ in range(20):
        sizes = random_step(rng, 256)
        packs = pack(sizes, capacity)
        assert sorted(i for members in packs for i in members) == list(range(256))
        loads = sums(sizes, packs)
        assert max(load.tokens for load in loads) <= capacity
        useful += sum(load.tokens for load in loads)
        room += capacity * len(packs)
    assert useful / room > 0.95


def test_images_and_tokens_are_even_over_ranks() -> None:
    """The fullest of the packs that ranks compute at the same time has hardly more than the mean of them."""
    rng = random.Random(0)
    waits: dict[str, list[float]] = {"tokens": [], "images": [], "plain": []}
    for _ in range(20):
        sizes = random_step(rng, 256)
        dealt = deal(sizes, pack(sizes, 4096, 8), 8)
        assert len({len(packs) for packs in dealt}) == 1, "as many packs on every rank"
        of_rank = [sums(sizes, [[i for members in packs for i in members]])[0] for packs in dealt]
        plain = [sum(size.images for size in sizes[rank::8]) for rank in range(8)]
        waits["tokens"].append(max(load.tokens for load in of_rank) * 8 / sum(s.tokens for s in sizes))
        waits["images"].append(max(load.images for load in of_rank) * 8 / sum(s.images for s in sizes))
        waits["plain"].append(max(plain) * 8 / sum(plain))
    mean = {name: sum(values) / len(values) for name, values in waits.items()}
    assert mean["tokens"] < 1.05
    assert mean["images"] < 1.05 < mean["plain"]


def test_many_images_that_are_clips_are_even_too() -> None:
    rng = random.Random(1)
    sizes = [Size(600 + rng.randrange(200), 8) for _ in range(20)] + [Size(rng.randrange(40, 400), 0)] * 60
    loads = sums(sizes, pack(sizes, 4096, 4))
    assert max(load.images for load in loads) - min(load.images for load in loads) <= 8


def test_samples_that_fill_a_pack_or_more_have_one_each() -> None:
    assert sorted(map(len, pack([Size(100, 1)] * 7, 100))) == [1] * 7
    assert sorted(map(len, pack([Size(100, 1)] * 7, 100, multiple=4))) == [0] + [1] * 7
    assert [len(members) for members in pack([Size(0, 0)] * 3, 100)] == [3], "of unusable samples alone"
    assert sorted(map(len, pack([Size(250, 3), Size(60, 1), Size(40, 1)], 100))) == [1, 2]


@pytest.fixture(scope="module")
def dataset(processor: Processor, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> SampleDataset:
    """Captions, conversations with and without images, and some that cannot be used."""
    broken = tmp_path_factory.mktemp("broken")
    (broken / "page.jpg").write_text("<html>404</html>")
    rows: list[dict[str, Any]] = [
        {"id": "page", "image": "page.jpg", "conversations": turns("<image>what?", "x")},
        {"id": "marks", "conversations": turns("<image>what?", "x")},
        {"id": "long", "conversations": turns("two " * 200, "x")},
        {"id": "cut", "conversations": turns("two?", "red " * 300)},
    ]
    paths = [corpora / "captions", corpora / "chat.jsonl", write_jsonl(broken / "broken.jsonl", rows)]
    sources = [open_source(path.stem, path) for path in paths]
    mixture = Mixture([len(source) for source in sources], [4, 4, 1], seed=2)
    return SampleDataset(sources, ["crop_flip", "none", "none"], mixture, processor, LIMIT)


def test_sizes_are_exact_before_any_image_is_opened(dataset: SampleDataset) -> None:
    holes = 0
    for n in range(200):
        item, size = dataset[n][1], dataset.size(n)
        if isinstance(item, Encoding):
            assert size == (len(item.ids), len(item.images))
        else:
            holes += 1
            assert size == (0, 0) or item["kind"] == "image cannot be read"
    assert holes > 10


def sampler(dataset: SampleDataset, ranks: int = 1, rank: int = 0, start_step: int = 0) -> PackSampler:
    return PackSampler(dataset.size, BATCH, PACK, ranks, rank, start_step, STEPS)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_packed_step_has_the_draws_of_the_plain_order_on_any_number_of_ranks(
    dataset: SampleDataset, ranks: int
) -> None:
    plain = StepSampler(micro_batch_size=BATCH, accumulation=1, ranks=1, rank=0, start_step=0, steps=STEPS)
    for step in (0, 3):
        per_rank = [sampler(dataset, ranks, rank).micro_batches(step) for rank in range(ranks)]
        assert len({len(packs) for packs in per_rank}) == 1
        drawn = [n for packs in per_rank for members in packs for n in members]
        assert sorted(drawn) == plain.micro_batches(step)[0]
        for packs in per_rank:
            for members in packs:
                assert sum(dataset.size(n).tokens for n in members) <= PACK


def packed(dataset: SampleDataset, log: Path, *, num_workers: int = 0, start_step: int = 0) -> list[Any]:
    batches = BatchLoader(
        dataset,
        sampler(dataset, start_step=start_step),
        num_workers=num_workers,
        bad_samples=log,
        max_bad_fraction=1,
    )
    return [
        (None if batch is None else (batch.keys, batch.layout.lengths), is_last)
        for batch, is_last in batches.micro_batches()
    ]


def test_packs_are_the_same_for_any_number_of_workers_and_after_a_resume(
    dataset: SampleDataset, tmp_path: Path
) -> None:
    whole = packed(dataset, tmp_path / "bad.jsonl")
    assert sum(is_last for _, is_last in whole) == STEPS
    assert packed(dataset, tmp_path / "bad.jsonl", num_workers=3) == whole
    ends = [number for number, (_, is_last) in enumerate(whole, start=1) if is_last]
    assert len(set(ends)) > 1
    assert packed(dataset, tmp_path / "bad.jsonl", start_step=2) == whole[ends[1] :]


def test_an_unusable_draw_is_recorded_once_whatever_its_pack(dataset: SampleDataset, tmp_path: Path) -> None:
    logs = []
    for ranks in (1, 2):
        log = tmp_path / f"{ranks}.jsonl"
        for rank in range(ranks):
            source = sampler(dataset, ranks, rank)
            list(BatchLoader(dataset, source, num_workers=0, bad_samples=log, max_bad_fraction=1))
        logs.append(sorted(log.read_text().splitlines()))
    assert logs[0] == logs[1]
    assert len(logs[0]) > 10


def test_packing_changes_nothing_that_is_learned_and_may_change_in_the_middle_of_a_run(
    corpora: Path,
    sentencepiece_tokenizer: SentencePieceTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
    plain = stage(tmp_path / "plain", checkpoint, corpora, steps=4, optim=OPTIM, global_batch_size=8)
    plain = dataclasses.replace(plain, micro_batch_size=8, accumulation=1)
    data = dataclasses.replace(plain.data, max_tokens=LIMIT, pack_tokens=PACK)
    plain = dataclasses.replace(plain, data=dataclasses.replace(data, pack_tokens=None))
    in_packs = dataclasses.replace(plain, run=tmp_path / "packs", data=data, micro_batch_size=1)
    run_whole(plain)
    run_until(in_packs, 2, monkeypatch)
    run_whole(dataclasses.replace(in_packs, data=dataclasses.replace(data, pack_tokens=4 * PACK)))
    for ours, theirs in zip(read_metrics(in_packs.run), read_metrics(plain.run), strict=True):
        for name in ("tokens", "targets", "images"):
            assert ours[name] == theirs[name]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    ours, theirs = (weights(config.run / "checkpoint") for config in (in_packs, plain))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in theirs)


def test_settings_of_packs_that_contradict_others_are_errors(corpora: Path, tmp_path: Path) -> None:
    config = stage(tmp_path, tmp_path, corpora)
    for changes, message in (
        (
            {"max_tokens": 512, "pack_tokens": 511},
            "data.pack_tokens 511 must be at least data.max_tokens 512",
        ),
        ({"max_tokens": 512, "pack_tokens": 512}, "leave micro_batch_size 2 and accumulation 2 at 1"),
    ):
        data = DataConfig(sources=config.data.sources, **changes)
        with pytest.raises(TrainConfigError, match=message):
            dataclasses.replace(config, data=data).check()

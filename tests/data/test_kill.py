"""Loaders killed at random moments go on with exactly the samples of an uninterrupted one."""

import dataclasses
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from owl2.processor import SentencePieceTokenizer
from tests.data.reader import Reader, run

PATIENCE_S = 200


@pytest.fixture
def reader(corpora: Path, sentencepiece_tokenizer: SentencePieceTokenizer, tmp_path: Path) -> Reader:
    (tmp_path / "tokenizer").mkdir()
    sentencepiece_tokenizer.save(tmp_path / "tokenizer")
    return Reader(corpora, tmp_path / "tokenizer", tmp_path, is_packed=True)


def read_until_killed(reader: Reader, ranks: int, num_steps: int, delay_s: float) -> list[Reader]:
    """Start all ranks, wait until each has finished some steps, and kill them at a random moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.data.reader"])
    readers = [dataclasses.replace(reader, ranks=ranks, rank=rank) for rank in range(ranks)]
    processes = [context.Process(target=run, args=(one,)) for one in readers]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE_S
    while min(len(one.finished()) for one in readers) < num_steps:
        assert time.monotonic() < deadline, "the ranks do not get on"
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    time.sleep(delay_s)
    for process in processes:
        process.kill()
        process.join()
    return readers


def interrupted(
    reader: Reader, ranks_of_lives: list[int], rng: random.Random
) -> tuple[dict[int, list[list[list[str]]]], list[int]]:
    """Each step's micro-batches by rank, over some lives of a run, and the steps at which lives began."""
    steps: dict[int, list[list[list[str]]]] = {}
    begins = []
    for ranks in ranks_of_lives:
        begins.append(reader.start_step)
        readers = read_until_killed(reader, ranks, rng.randint(1, 12), rng.uniform(0, 0.05))
        by_rank = [one.finished() for one in readers]
        # A state is one of all ranks: what some of them read beyond it is read again.
        end = min(max(of_rank) for of_rank in by_rank) + 1
        for step in range(reader.start_step, end):
            steps[step] = [of_rank[step] for of_rank in by_rank]
        reader = dataclasses.replace(reader, start_step=end)
    return steps, begins


def uninterrupted(reader: Reader, steps: int) -> dict[int, list[list[str]]]:
    """Each step's micro-batches on one rank."""
    found: dict[int, list[list[str]]] = {0: []}
    for batch, is_last in dataclasses.replace(reader, num_workers=0).batches(steps).micro_batches():
        assert batch is not None
        found[max(found)].append(list(batch.keys))
        if is_last:
            found[max(found) + 1] = []
    return {step: samples for step, samples in found.items() if samples}


@pytest.mark.slow
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_a_loader_killed_four_times_reads_what_an_uninterrupted_one_reads(
    reader: Reader, num_workers: int, is_packed: bool
) -> None:
    reader = dataclasses.replace(reader, num_workers=num_workers, is_packed=is_packed)
    seen, begins = interrupted(reader, [1, 1, 1, 1], random.Random(10 * num_workers + is_packed))
    whole = uninterrupted(reader, max(seen) + 1)
    assert len(set(begins)) == 4
    assert {step: ranks[0] for step, ranks in seen.items()} == whole


@pytest.mark.slow
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
def test_a_run_killed_on_1_2_and_4_ranks_reads_the_steps_of_one_rank(reader: Reader, is_packed: bool) -> None:
    reader = dataclasses.replace(reader, num_workers=1, is_packed=is_packed)
    seen, _ = interrupted(reader, [1, 2, 4, 2, 1], random.Random(7))
    whole = uninterrupted(reader, max(seen) + 1)
    assert seen.keys() == whole.keys()
    for step, ranks in seen.items():
        drawn = [key for micro_batches in ranks for keys in micro_batches for key in keys]
        assert sorted(drawn) == sorted(key for keys in whole[step] for key in keys)


def test_a_loader_with_a_worker_killed_once_reads_what_an_uninterrupted_one_reads(reader: Reader) -> None:
    reader = dataclasses.replace(reader, num_workers=1)
    seen, _ = interrupted(reader, [1, 1], random.Random(3))
    assert {step: ranks[0] for step, ranks in seen.items()} == uninterrupted(reader, max(seen) + 1)

"""From draws to batches: what a batch holds, how samples are cut, and what happens to bad ones."""

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from owl2.data.dataset import SampleDataset, truncate
from owl2.data.loader import MIN_BAD_SAMPLES, Batch, BatchLoader, Collate
from owl2.data.order import Mixture, StepSampler
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError
from owl2.processor import Encoding, Processor
from tests.data.small import jpeg, turns, write_jsonl

IMAGE = -200


def open_batches(
    processor: Processor,
    paths: Sequence[Path],
    log: Path,
    *,
    micro_batch_size: int = 3,
    start_step: int = 0,
    steps: int = 4,
    num_workers: int = 0,
    max_bad_fraction: float = 1.0,
    max_tokens: int = 512,
) -> BatchLoader:
    """Steps of two micro-batches over corpora of equal weight."""
    sources = [open_source(path.stem, path) for path in paths]
    mixture = Mixture([len(source) for source in sources], [1] * len(sources), seed=0)
    dataset = SampleDataset(sources, ["crop_flip"] * len(sources), mixture, processor, max_tokens)
    sampler = StepSampler(
        micro_batch_size=micro_batch_size,
        accumulation=2,
        ranks=1,
        rank=0,
        start_step=start_step,
        steps=steps,
    )
    return BatchLoader(
        dataset, sampler, num_workers=num_workers, bad_samples=log, max_bad_fraction=max_bad_fraction
    )


def tensors(batch: Batch | None) -> dict[str, Any]:
    """Everything in a batch, by name."""
    assert batch is not None
    parts = {"input_ids": batch.input_ids, "pixel_values": batch.pixel_values, "keys": batch.keys}
    return (
        parts | vars(batch.layout) | {f"target_{name}": value for name, value in vars(batch.targets).items()}
    )


def assert_same(ours: Sequence[Batch | None], theirs: Sequence[Batch | None]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name, value in tensors(a).items():
            other = tensors(b)[name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def both(corpora: Path) -> list[Path]:
    return [corpora / "captions", corpora / "chat.jsonl"]


def test_a_batch_is_its_samples_end_to_end_with_answers_and_end_tokens_as_targets(
    processor: Processor, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    rows = [
        {
            "id": "seen",
            "image": "a.jpg",
            "conversations": turns("<image>what is it?", "an owl", "sure?", "yes"),
        },
        {"id": "text", "conversations": turns("two?", "two red apples")},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    (batch, *_) = open_batches(processor, [path], tmp_path / "bad.jsonl", micro_batch_size=6)
    assert batch is not None
    assert set(batch.keys) == {"rows:seen", "rows:text"}
    num_images = batch.keys.count("rows:seen")
    end = processor.tokenizer.eos_token_id
    answers = {"rows:seen": ("an owl", "yes"), "rows:text": ("two red apples",)}
    begin = 0
    targets = []
    for key, length in zip(batch.keys, batch.layout.lengths, strict=True):
        ids = batch.input_ids[begin : begin + length].tolist()
        assert ids.count(IMAGE) == (5 if key == "rows:seen" else 0)
        assert ids[-1] == end
        begin += length
        for answer in answers[key]:
            targets += [*processor.tokenizer.encode(answer, space=True), end]
    assert begin == len(batch.input_ids) == batch.layout.num_tokens
    assert batch.targets.ids.tolist() == targets
    assert torch.equal(batch.input_ids[batch.targets.rows + 1], batch.targets.ids)
    assert batch.layout.num_visual == 5 * num_images
    assert batch.pixel_values.shape == (num_images, 3, 28, 28)
    assert batch.pixel_values.dtype == torch.float32


def test_an_image_is_augmented_anew_in_every_draw_and_each_of_a_sample_in_its_own_way(
    processor: Processor, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    row = {"id": "a", "image": ["a.jpg", "a.jpg"], "conversations": turns("<image><image>two?", "yes")}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    dataset = open_batches(processor, [path], tmp_path / "bad.jsonl").dataset
    seen = [
        encoding.images for n in range(10) for encoding in [dataset[n][1]] if isinstance(encoding, Encoding)
    ]
    assert len({image.tobytes() for images in seen for image in images}) == 20


def test_no_target_crosses_from_one_sample_to_the_next(
    processor: Processor, corpora: Path, tmp_path: Path
) -> None:
    for batch in open_batches(processor, both(corpora), tmp_path / "bad.jsonl"):
        assert batch is not None
        last_rows = torch.tensor(batch.layout.lengths).cumsum(0) - 1
        assert not set(last_rows.tolist()) & set(batch.targets.rows.tolist())


def test_two_workers_make_the_same_batches_as_none_bit_for_bit(
    processor: Processor, corpora: Path, tmp_path: Path
) -> None:
    none = list(open_batches(processor, both(corpora), tmp_path / "bad.jsonl"))
    two = list(open_batches(processor, both(corpora), tmp_path / "bad.jsonl", num_workers=2))
    assert_same(two, none)


def test_batches_from_a_later_step_are_those_of_the_whole_run(
    processor: Processor, corpora: Path, tmp_path: Path
) -> None:
    whole = list(open_batches(processor, both(corpora), tmp_path / "bad.jsonl"))
    assert_same(list(open_batches(processor, both(corpora), tmp_path / "bad.jsonl", start_step=3)), whole[6:])


def test_batches_of_workers_hold_no_file_open(processor: Processor, corpora: Path, tmp_path: Path) -> None:
    """A step may hold hundreds of micro-batches, and a process commonly at most 1,024 open files."""
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("counts open files in /proc")
    batches = iter(open_batches(processor, both(corpora), tmp_path / "bad.jsonl", steps=30, num_workers=1))
    held = [next(batches)]
    before = len(list(open_files.iterdir()))
    held += [next(batches) for _ in range(50)]
    assert len(held) == 51
    assert len(list(open_files.iterdir())) < before + 50


def test_a_worker_asked_to_stop_by_a_scheduler_works_on_until_the_batches_are_over(
    processor: Processor, corpora: Path, tmp_path: Path
) -> None:
    before = set(multiprocessing.active_children())
    batches = open_batches(processor, both(corpora), tmp_path / "bad.jsonl", steps=20, num_workers=1)
    iterator = iter(batches)
    found = [next(iterator)]
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)  # type: ignore[arg-type]
    found += [next(iterator) for _ in range(20)]
    assert None not in found
    assert worker.is_alive()
    batches.is_over.value = True
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_no_worker_outlives_its_batches(processor: Processor, corpora: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    iterator = iter(open_batches(processor, both(corpora), tmp_path / "bad.jsonl", num_workers=2))
    next(iterator)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del iterator
    assert set(multiprocessing.active_children()) <= before


def write_mixed(folder: Path, num_good: int, num_bad: int) -> Path:
    """Text rows that are good and rows whose image is missing."""
    good = [{"id": f"good-{i}", "conversations": turns("two?", "red")} for i in range(num_good)]
    bad = [
        {"id": f"bad-{i}", "image": f"gone-{i}.jpg", "conversations": turns("<image>", "red")}
        for i in range(num_bad)
    ]
    return write_jsonl(folder / "mixed.jsonl", [*good, *bad])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_sample_leaves_a_hole_and_is_recorded_with_its_reason(
    num_workers: int, processor: Processor, tmp_path: Path
) -> None:
    path = write_mixed(tmp_path, 7, 1)
    log = tmp_path / "bad.jsonl"
    batches = open_batches(processor, [path], log, micro_batch_size=20, steps=1, num_workers=num_workers)
    found = list(batches)
    keys = [key for batch in found if batch for key in batch.keys]
    assert set(keys) == {f"mixed:good-{i}" for i in range(7)}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 40 - len(keys) > 0
    for row in rows:
        assert (row["source"], row["key"]) == ("mixed", "mixed:bad-0")
        assert row["reason"].startswith("FileNotFoundError: ")
        assert row["reason"].endswith(f"{tmp_path / 'gone-0.jpg'}'")
    assert batches.num_drawn == 40
    assert batches.num_bad == {"mixed": len(rows)}


def test_every_way_to_be_bad_is_a_hole_with_a_reason(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    (tmp_path / "cut.jpg").write_bytes(jpeg(1)[:-200])
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    rows = [
        {"id": "missing", "image": "gone.jpg", "conversations": turns("<image>", "x")},
        {"id": "cut", "image": "cut.jpg", "conversations": turns("<image>", "x")},
        {"id": "page", "image": "page.jpg", "conversations": turns("<image>", "x")},
        {"id": "folder", "image": ".", "conversations": turns("<image>", "x")},
        {"id": "marks", "conversations": turns("<image>", "x")},
        {"id": "roles", "conversations": turns("x", "y")[1:]},
        {"id": "empty", "conversations": []},
        {"id": "image-in-answer", "image": "good.jpg", "conversations": turns("draw an owl", "<image>")},
        {"id": "unanswered", "conversations": turns("two?")},
        {"id": "long", "conversations": turns("two " * 100, "x")},
        "not a row",
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)  # type: ignore[arg-type]
    log = tmp_path / "bad.jsonl"
    batches = open_batches(processor, [path], log, micro_batch_size=50, steps=1, max_tokens=60)
    assert list(batches) == [None, None]
    recorded = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(recorded) == 100
    reasons = {row["key"].split(":")[1]: row["reason"] for row in recorded}
    expected = {
        "missing": "No such file",
        "cut": r"cut.jpg: .*(truncated|Truncated)",
        "page": "page.jpg: .*not an image",
        "folder": "IsADirectoryError",
        "#4": "sample marks has 1 image mark.s. and 0 image",
        "#5": "turn 1 of sample roles is from .gpt., expected .human.",
        "empty": "no turns",
        "image-in-answer": "an answer cannot hold an image",
        "unanswered": "no labelled token within 60 of its",
        "long": r"no labelled token within 60 of its \d\d\d tokens",
        "#10": "line 11 of .*rows.jsonl: holds a str, expected an object",
    }
    assert reasons.keys() == expected.keys()
    for key, pattern in expected.items():
        assert re.search(pattern, reasons[key]), (key, reasons[key])


def test_a_batch_of_bad_samples_alone_is_none_and_the_next_one_is_whole(
    processor: Processor, tmp_path: Path
) -> None:
    path = write_mixed(tmp_path, 1, 1)
    for num_workers in (0, 1):
        batches = open_batches(
            processor, [path], tmp_path / "bad.jsonl", micro_batch_size=1, num_workers=num_workers
        )
        found = [None if batch is None else batch.keys for batch in batches]
        assert found.count(None) == 4
        assert found.count(("mixed:good-0",)) == 4
        assert batches.num_drawn == 8


def test_too_many_bad_samples_stop_the_run_with_counts_the_last_reason_and_the_log(
    processor: Processor, tmp_path: Path
) -> None:
    path = write_mixed(tmp_path, 30, 30)
    log = tmp_path / "bad.jsonl"
    batches = iter(open_batches(processor, [path], log, steps=40, max_bad_fraction=0.01))
    with pytest.raises(DataError) as caught:
        list(batches)
    message = str(caught.value)
    recorded = log.read_text().splitlines()
    assert len(recorded) >= MIN_BAD_SAMPLES + 1
    assert message.startswith(f"{len(recorded)} of ")
    assert f"({{'mixed': {len(recorded)}}}), more than 1.0%. The last: mixed:bad-" in message
    assert "No such file" in message
    assert message.endswith(f"All are in {log}; repair them or raise data.max_bad_fraction")


def test_a_few_bad_samples_never_stop_a_run(processor: Processor, tmp_path: Path) -> None:
    path = write_mixed(tmp_path, 1, MIN_BAD_SAMPLES)
    batches = open_batches(
        processor, [path], tmp_path / "bad.jsonl", micro_batch_size=5, steps=1, max_bad_fraction=0.0
    )
    assert len(list(batches)) == 2


def test_a_share_below_the_threshold_does_not_stop_a_long_run(processor: Processor, tmp_path: Path) -> None:
    path = write_mixed(tmp_path, 97, 3)
    batches = open_batches(
        processor, [path], tmp_path / "bad.jsonl", micro_batch_size=50, steps=10, max_bad_fraction=0.04
    )
    assert len(list(batches)) == 20
    assert batches.num_bad.total() == 30


def test_an_unforeseen_fault_says_in_which_sample_it_happened(processor: Processor, tmp_path: Path) -> None:
    path = write_mixed(tmp_path, 1, 0)
    dataset = open_batches(processor, [path], tmp_path / "bad.jsonl").dataset
    dataset.max_tokens = "many"  # type: ignore[assignment]
    with pytest.raises(TypeError) as caught:
        dataset[3]
    assert caught.value.__notes__ == ["This happened in draw 3, sample mixed:good-0"]


BLANK = Image.new("RGB", (4, 4))


def encoding(layout: str) -> Encoding:
    """`t` a token of a question, `A` one of an answer, `I` an image of three tokens."""
    ids, is_target = [], []
    for letter in layout:
        ids += [IMAGE] * 3 if letter == "I" else [7]
        is_target += [False] * 3 if letter == "I" else [letter == "A"]
    return Encoding(ids, is_target, [BLANK] * layout.count("I"))


@pytest.mark.parametrize(
    ("before", "max_tokens", "after"),
    [
        ("tItAA", 7, "tItAA"),
        ("tItAA", 6, "tItA"),
        ("ttAAttAA", 5, "ttAAt"),
        ("tAIIA", 8, "tAII"),
        ("tAIIA", 7, "tAI"),
        ("tAIIA", 6, "tAI"),
        ("tAIIA", 5, "tAI"),
        ("tAIIA", 4, "tA"),
        ("tAIIA", 3, "tA"),
        ("tAIIA", 2, "tA"),
        ("IAIA", 7, "IAI"),
        ("IAIA", 6, "IA"),
        ("AA", 2, "AA"),
    ],
)
def test_a_sample_is_cut_to_the_limit_but_never_through_an_image(
    before: str, max_tokens: int, after: str
) -> None:
    cut = truncate(encoding(before), max_tokens, IMAGE)
    expected = encoding(after)
    assert cut == expected
    assert cut.ids.count(IMAGE) == 3 * len(cut.images)
    assert len(cut.ids) <= max_tokens


@pytest.mark.parametrize(
    ("layout", "max_tokens"), [("tttA", 3), ("IA", 3), ("IA", 2), ("ttt", 9), ("A", 5), ("At", 9)]
)
def test_a_sample_with_nothing_left_to_learn_is_an_error_with_its_length(
    layout: str, max_tokens: int
) -> None:
    length = len(encoding(layout).ids)
    with pytest.raises(DataError, match=rf"no labelled token within {max_tokens} of its {length} tokens"):
        truncate(encoding(layout), max_tokens, IMAGE)


def test_cutting_and_collating_at_every_length_keeps_images_and_places_together(
    processor: Processor,
) -> None:
    whole = processor.encode(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": BLANK}, {"type": "text", "text": "two?"}],
            },
            {"role": "assistant", "content": "an owl"},
            {"role": "user", "content": [{"type": "image", "image": BLANK}] * 2},
            {"role": "assistant", "content": "two owls"},
        ]
    )
    collate = Collate(processor)
    usable = 0
    for limit in range(1, len(whole.ids) + 1):
        try:
            cut = truncate(whole, limit, IMAGE)
        except DataError:
            continue
        batch, bad = collate([("a", cut)])
        assert batch is not None
        assert not bad
        assert batch.layout.num_visual == 5 * len(batch.pixel_values)
        usable += 1
    assert usable > 20

"""Questions set apart: no question sees another, all see the image, and it is encoded once."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from owl2.data.dataset import SampleDataset
from owl2.data.loader import Batch, Collate
from owl2.data.order import Mixture
from owl2.data.readers.sources import open_source
from owl2.model import build, preset
from owl2.processor import Encoding, Processor
from owl2.train.objectives import next_token
from tests.data.small import jpeg, turns, write_jsonl

PAIRS = (("<image>what is it?", "a cat"), ("what color is the cat?", "red"), ("two?", "no"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    return tmp_path


def open_dataset(
    folder: Path, processor: Processor, rows: list[dict[str, Any]], apart: Collection[str]
) -> SampleDataset:
    source = open_source("chat", write_jsonl(folder / "chat.jsonl", rows))
    return SampleDataset(
        [source], ["none"], Mixture([len(source)], [1.0], 0), processor, 120, turns_apart=apart
    )


def only_batch(dataset: SampleDataset, rows: int) -> Batch:
    batch, bad = Collate(dataset.processor)([dataset[n] for n in range(rows)])
    assert batch is not None
    assert not bad
    return batch


@pytest.mark.parametrize("more", [{}, {"system": "be brief"}], ids=["", "system"])
def test_questions_apart_are_worth_as_much_as_samples_of_their_own(
    folder: Path, processor: Processor, more: dict[str, str]
) -> None:
    talk = turns(*(text for pair in PAIRS for text in pair))
    whole = [{"id": "a", "image": "a.jpg", **more, "conversations": talk}]
    single = [
        {
            "id": str(n),
            "image": "a.jpg",
            **more,
            "conversations": turns(f"<image>{q.removeprefix('<image>')}", a),
        }
        for n, (q, a) in enumerate(PAIRS)
    ]
    apart = only_batch(open_dataset(folder, processor, whole, ["chat"]), 1)
    alone = only_batch(open_dataset(folder, processor, single, []), 3)
    assert (len(apart.pixel_values), len(alone.pixel_values)) == (1, 3)
    assert (apart.num_samples, apart.keys) == (1, ("chat:a",) * 3)
    config = preset("tiny")
    assert config.tokens_per_image == 5
    model = build(replace(config, decoder=replace(config.decoder, vocab_size=2048)))
    model.set_image_size(28)
    apart_losses, alone_losses = next_token(model, apart), next_token(model, alone)
    order = [alone.keys.index(f"chat:{n}") for n in range(3)]
    rows = torch.repeat_interleave(torch.arange(3), torch.tensor([_targets(alone, row) for row in range(3)]))
    expected = torch.cat([alone_losses[rows == row] for row in order])
    torch.testing.assert_close(apart_losses, expected, rtol=1e-5, atol=1e-5)


def _targets(batch: Batch, row: int) -> int:
    begin, end = batch.layout.boundaries[row : row + 2].tolist()
    return int(((batch.targets.rows >= begin) & (batch.targets.rows < end)).sum())


def test_the_size_of_a_sample_apart_is_known_before_its_image_is_opened(
    folder: Path, processor: Processor
) -> None:
    rows = [{"id": "a", "image": "a.jpg", "conversations": turns(*(t for pair in PAIRS for t in pair))}]
    dataset = open_dataset(folder, processor, rows, ["chat"])
    item = dataset[0][1]
    assert isinstance(item, Encoding)
    assert item.rows is not None
    assert dataset.size(0) == (sum(item.rows), 1) == (len(item.ids), 1)


def test_an_image_in_a_later_turn_cannot_be_set_apart(folder: Path, processor: Processor) -> None:
    rows = [{"id": "a", "image": ["a.jpg"] * 2, "conversations": turns("<image>a?", "b", "<image>c?", "d")}]
    _, bad = open_dataset(folder, processor, rows, ["chat"])[0]
    assert isinstance(bad, dict)
    assert bad["kind"] == "image in a later turn"


def test_text_alone_can_be_set_apart_beside_images(folder: Path, processor: Processor) -> None:
    rows = [
        {"id": "a", "conversations": turns("one?", "two", "two?", "one")},
        {"id": "b", "image": "a.jpg", "conversations": turns("<image>a?", "b", "c?", "d")},
    ]
    batch = only_batch(open_dataset(folder, processor, rows, ["chat"]), 2)
    assert len(batch.layout.lengths) == 4
    assert len(batch.pixel_values) == 1
    assert batch.image_of is not None
    assert batch.image_of.tolist() == [0, 0]

"""The full-size model on the meta device has the released checkpoint's names, shapes and parameter count."""

import gzip
import json
from pathlib import Path

import pytest

from owl2.model import Owl2Model, build


@pytest.fixture(scope="module")
def released_7b() -> Owl2Model:
    return build("owl2_7b", device="meta")


def test_the_894_keys_and_shapes_are_the_released_ones(released_7b: Owl2Model, golden_folder: Path) -> None:
    listed = json.loads(gzip.decompress((golden_folder / "released_7b_shapes.json.gz").read_bytes()))
    ours = {name: list(value.shape) for name, value in released_7b.state_dict().items()}
    assert len(listed) == 894
    assert ours == listed


def test_the_parameter_counts_are_the_released_ones(released_7b: Owl2Model) -> None:
    counts = {name: p.numel() for name, p in released_7b.named_parameters()}
    assert len(counts) == 850
    assert sum(counts.values()) == 8_197_859_328

    def under(text: str) -> int:
        return sum(n for name, n in counts.items() if text in name)

    assert under("model.vision_model.") == 303_966_208
    assert under("model.visual_abstractor.") == 81_473_536
    assert under(".multiway.1.") == 1_074_003_968


def test_nothing_on_meta_takes_memory(released_7b: Owl2Model) -> None:
    assert all(tensor.is_meta for tensor in released_7b.state_dict().values())
    assert released_7b.config.tokens_per_image == 65

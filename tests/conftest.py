"""Fixtures for all tests: the golden model and what the released code computed from it.

A golden case is kept as the released code saw it, one -200 a mark. `GoldenCase` brings it into our form:
every visual position has its own `image_token_id`, and a text-only row has no image.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from owl2.files import cache_folder
from owl2.model import Owl2Config, Owl2Model, build

GOLDEN = Path(__file__).parent / "golden"
QUERIES = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=GOLDEN, help="folder of golden values")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden_with(*names): golden cases with one of these tensors")
    assets = cache_folder() / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    own = tempfile.TemporaryDirectory()  # indices of shards that are gone after the test
    (Path(own.name) / "assets").symlink_to(assets.resolve())
    os.environ["OWL2_CACHE"] = own.name
    config.add_cleanup(own.cleanup)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("golden_with")
    files = sorted(metafunc.config.getoption("golden").glob("case_*.safetensors"))
    if marker is not None:
        files = [file for file in files if _names(file) & set(marker.args)]
    names = [file.stem.removeprefix("case_") for file in files]
    metafunc.parametrize("golden_case", files, ids=names, indirect=True)


def _names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())


@pytest.fixture(scope="session")
def golden_folder(request: pytest.FixtureRequest) -> Path:
    """The golden checkpoint folder."""
    return request.config.getoption("golden")


@pytest.fixture
def golden_model(golden_folder: Path) -> Owl2Model:
    """The tiny released model, fresh for each test."""
    config = Owl2Config.from_dict(json.loads((golden_folder / "config.json").read_text()))
    model = build(config)
    model.load_state_dict(load_file(golden_folder / "model.safetensors"))
    return model


@dataclass(frozen=True)
class GoldenCase:
    """One batch and what the released code made of it. Shapes: B rows, T slots, I images, Q queries."""

    name: str
    input_ids: Tensor
    """(B, T) with the image token at every visual position."""
    attention_mask: Tensor
    """(B, T) bool."""
    labels: Tensor | None
    """(B, T), -100 where nothing is learnt."""
    pixel_values: Tensor | None
    """(I, 3, H, W), if the case has them."""
    visual_tokens: Tensor | None
    """(I, Q + 1, D) from the released abstractor; None if the case has no image."""
    expected: dict[str, Tensor]

    @property
    def encoded(self) -> Tensor | None:
        """Visual tokens where the case has no pixels: what `embed` needs besides `pixel_values`."""
        return self.visual_tokens if self.pixel_values is None else None


def expand_images(rows: Tensor, at_marks: Tensor, copies: int, fill: int) -> Tensor:
    """Repeat each marked slot of (B, T) `copies` times and pad the shorter rows on the right."""
    repeats = torch.where(at_marks, copies, 1)
    wide = [row.repeat_interleave(times) for row, times in zip(rows, repeats, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(wide, batch_first=True, padding_value=fill)


@pytest.fixture
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    """Each case of the golden folder in turn."""
    expected = load_file(request.param)
    ids = expected["input_ids"]
    mask = expected.get("attention_mask", torch.ones_like(ids, dtype=torch.bool))
    marks = ids == -200
    num_marks, num_visual = int(marks.sum()), int(expected["modality"].sum())
    copies = num_visual // num_marks if num_marks else 1
    pixels = expected.get("images", expected.get("images.0"))
    if pixels is not None:
        # The released code spent one more, blank image on a text-only row; it belongs to no mark.
        pixels = pixels[:num_marks] if "images" in expected else pixels
    visual_tokens = expected.get("abstractor_out")
    if visual_tokens is None and num_marks:
        embeds = expected["inputs_embeds"]
        visual_tokens = embeds[expected["modality"].bool()].unflatten(0, (-1, QUERIES + 1))
    if visual_tokens is not None:
        visual_tokens = visual_tokens[: num_visual // visual_tokens.shape[1]]
    labels = expected.get("labels")
    return GoldenCase(
        name=request.param.stem.removeprefix("case_"),
        input_ids=expand_images(ids, marks, copies, 0),
        attention_mask=expand_images(mask, marks, copies, 0).bool(),
        labels=None if labels is None else expand_images(labels, marks, copies, -100),
        pixel_values=pixels,
        visual_tokens=visual_tokens,
        expected=expected,
    )

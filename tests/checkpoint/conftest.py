"""Released-layout folders of tiny models: pickled half-precision shards with an index, as the release has."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from owl2.model import Owl2Model, build

POSITIONS = ("q_pos_embed", "k_pos_embed")

WriteReleased = Callable[..., Path]


@pytest.fixture
def tiny() -> Owl2Model:
    """A model whose every parameter is random, so that no two tensors agree by chance."""
    model = build("tiny", seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
    return model


@pytest.fixture
def write_released(tmp_path: Path) -> WriteReleased:
    """Write a model as the release is: `write_released(model, name=..., shards=3, positions=False, ...)`."""

    def write(
        model: Owl2Model,
        name: str = "released",
        *,
        shards: int = 3,
        dtype: torch.dtype = torch.float16,
        positions: bool = False,
        legacy: bool = False,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        state = {
            key: value.to(dtype)
            for key, value in model.state_dict().items()
            if positions or not key.endswith(POSITIONS)
        }
        names = list(state)
        files = [f"pytorch_model-{i + 1}-of-{shards}.bin" for i in range(shards)]
        weight_map = {key: files[i * shards // len(names)] for i, key in enumerate(names)}
        for file in files:
            shard = {key: state[key] for key in names if weight_map[key] == file}
            torch.save(shard, folder / file, _use_new_zipfile_serialization=not legacy)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        raw = model.config.to_dict()
        for ours in ("mam", "image_token_id", "head_dim"):
            del raw[ours]  # the released config.json does not have them
        (folder / "config.json").write_text(json.dumps(raw))
        return folder

    return write

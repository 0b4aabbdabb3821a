"""An ONNX file with a DINOv2 inside gives the encoder that it was exported from."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from owl2.checkpoint import CheckpointError
from owl2.checkpoint.assemble import read_vision
from owl2.checkpoint.onnx import read_initializers
from owl2.model.vision import VisionEncoder

onnx = pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")


def export(file: Path, state: dict[str, torch.Tensor], *, other: str = "decoder.upconv1.weight") -> None:
    """Write what PyTorch's exporter writes: matrices of linears and the position table are constants."""
    nodes, values, constants = [], [], 0

    def add(name: str, array: np.ndarray) -> None:
        values.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))

    for name, parameter in state.items():
        array = parameter.numpy()
        module, _, kind = f"backbone.{name}".rpartition(".")
        if kind == "weight" and array.ndim == 2:
            constants += 1
            constant = f"onnx::MatMul_{constants}"
            add(constant, array.T)
            path = f"/{module.replace('.', '/')}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", constant], ["y"], path))
        elif kind == "position_embeddings":
            for op, part in (("Concat", array[:, :1]), ("Reshape", array[:, 1:])):
                add(f"onnx::{op}_{constants}", part)
                path = f"/backbone/embeddings/{op}_6"
                nodes.append(onnx.helper.make_node(op, [f"onnx::{op}_{constants}", "x"], ["y"], path))
        elif kind != "mask_token":
            add(f"backbone.{name}", array)
    add(other, np.ones((2, 2), np.float32))
    write(file, values, nodes)


def write(file: Path, values: list[Any], nodes: Sequence[Any] = ()) -> None:
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], values)), file)


@pytest.fixture
def dinov2() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def state(dinov2, tmp_path) -> dict[str, torch.Tensor]:
    """By the names that files have, which an export keeps; modules have had others since transformers 5."""
    transformers.utils.logging.disable_progress_bar()
    dinov2.save_pretrained(tmp_path / "dinov2")
    return load_file(tmp_path / "dinov2" / "model.safetensors")


@torch.no_grad()
def test_an_exported_dinov2_gives_the_same_features(tmp_path, dinov2, state):
    export(tmp_path / "model.onnx", state)
    part = read_vision(tmp_path / "model.onnx")
    assert part.config.image_size == 56
    assert part.unused == ["decoder.upconv1.weight"]
    encoder = VisionEncoder(part.config)
    encoder.load_state_dict({name: part.read(name) for name in part.recipes})
    for side in (56, 84):
        pixels = torch.randn(2, 3, side, side)
        expected = dinov2(pixels).last_hidden_state
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=0)


def test_tensors_that_no_encoder_has_are_refused(tmp_path, state):
    export(tmp_path / "model.onnx", state, other="backbone.embeddings.register_tokens")
    with pytest.raises(CheckpointError, match=r"does not know: backbone\.embeddings\.register_tokens"):
        read_vision(tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not an onnx file", b"\x3a\x09" + b"\xff" * 9, b"\x08\x08"])
def test_a_file_that_is_no_onnx_graph_is_named(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        read_vision(tmp_path / "model.onnx")


def test_a_graph_without_a_dinov2_says_what_was_looked_for(tmp_path):
    write(tmp_path / "model.onnx", [onnx.numpy_helper.from_array(np.ones((2, 2)), "conv.weight")])
    with pytest.raises(CheckpointError, match="there is no DINOv2 inside"):
        read_vision(tmp_path / "model.onnx")


def test_values_of_every_floating_point_type_are_read(tmp_path):
    names = {
        torch.float32: "FLOAT",
        torch.float16: "FLOAT16",
        torch.bfloat16: "BFLOAT16",
        torch.float64: "DOUBLE",
    }
    made = [
        onnx.helper.make_tensor(name, onnx.TensorProto.DataType.Value(name), [2, 1], [0.5, -3.0])
        for name in names.values()
    ]
    write(tmp_path / "model.onnx", made)
    read = read_initializers(tmp_path / "model.onnx")
    for dtype, name in names.items():
        assert read[name].dtype == dtype
        assert read[name].tolist() == [[0.5], [-3.0]]


def test_values_outside_of_the_file_are_read_and_a_missing_file_of_them_is_an_error(tmp_path, state):
    export(tmp_path / "model.onnx", state)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="values", size_threshold=0)
    whole, split = (read_initializers(tmp_path / name) for name in ("model.onnx", "split.onnx"))
    assert whole.keys() == split.keys()
    assert all(torch.equal(whole[name], split[name]) for name in whole)
    (tmp_path / "values").unlink()
    with pytest.raises(CheckpointError, match=r"split\.onnx"):
        read_initializers(tmp_path / "split.onnx")


def test_without_the_onnx_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "model.onnx", [])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CheckpointError, match=r"model\.onnx: .*pip install 'owl2\[onnx\]'"):
        read_vision(tmp_path / "model.onnx")


def test_a_file_cut_short_is_named(tmp_path, state):
    export(tmp_path / "model.onnx", state)
    (tmp_path / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="not an ONNX file, or it is cut short"):
        read_vision(tmp_path / "model.onnx")

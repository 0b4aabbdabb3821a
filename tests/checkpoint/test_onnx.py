"""An ONNX file with a DINOv2 inside gives the encoder that it was exported from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from owl2.checkpoint import CheckpointError
from owl2.checkpoint.assemble import read_vision
from owl2.model.vision import VisionEncoder

transformers = pytest.importorskip("transformers")


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def initializer(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(field(1, size) for size in values.shape)
    return field(5, dims + field(2, 1) + field(8, name) + field(9, values.tobytes()))


def node(op: str, path: str, *inputs: str) -> bytes:
    return field(1, b"".join(field(1, name) for name in inputs) + field(3, path) + field(4, op))


def export(file: Path, state: dict[str, torch.Tensor], *, other: str = "decoder.upconv1.weight") -> None:
    """Write what PyTorch's exporter writes: matrices of linears and the position table are constants."""
    graph, constants = b"", 0
    for name, parameter in state.items():
        values = parameter.numpy()
        module, _, kind = f"backbone.{name}".rpartition(".")
        if kind == "weight" and values.ndim == 2:
            constants += 1
            constant = f"onnx::MatMul_{constants}"
            graph += initializer(constant, np.ascontiguousarray(values.T))
            graph += node("MatMul", f"/{module.replace('.', '/')}/MatMul", "x", constant)
        elif kind == "position_embeddings":
            for op, part in (("Concat", values[:, :1]), ("Reshape", values[:, 1:])):
                graph += initializer(f"onnx::{op}_{constants}", np.ascontiguousarray(part))
                graph += node(op, f"/backbone/embeddings/{op}_6", f"onnx::{op}_{constants}", "x")
        elif kind != "mask_token":
            graph += initializer(f"backbone.{name}", values)
    graph += initializer(other, np.ones((2, 2), np.float32))
    file.write_bytes(field(1, 8) + field(2, "pytorch") + field(7, graph))


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


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not an onnx file", field(7, b"\xff" * 9), field(1, 8)])
def test_a_file_that_is_no_onnx_graph_is_named(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        read_vision(tmp_path / "model.onnx")


def test_a_graph_without_a_dinov2_says_what_was_looked_for(tmp_path):
    graph = initializer("conv.weight", np.ones((2, 2), np.float32))
    (tmp_path / "model.onnx").write_bytes(field(7, graph))
    with pytest.raises(CheckpointError, match="there is no DINOv2 inside"):
        read_vision(tmp_path / "model.onnx")


def test_a_file_cut_short_is_named(tmp_path, state):
    export(tmp_path / "model.onnx", state)
    (tmp_path / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="not an ONNX file, or it is cut short"):
        read_vision(tmp_path / "model.onnx")

"""The parameters of an ONNX file, without the `onnx` package: a walk over four protobuf messages.

An ONNX file is a protobuf: ModelProto holds GraphProto (field 7), which holds nodes (field 1) and initial
values (field 5, TensorProto). Exporting from PyTorch keeps most parameter names; matrices of linears lose
theirs to constants like `onnx::MatMul_1966`, which are named here after the node that uses them, and
transposed back: node `/encoder/key/MatMul` -> `encoder.key.weight`.

Source: onnx.proto of the ONNX project (field numbers). PyTorch's exporter stores values as raw bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError

TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Node:
    """One operation of the graph."""

    op: str
    path: str
    inputs: tuple[str, ...]


def read_initializers(file: Path) -> dict[str, Tensor]:
    """Return every initial value of an ONNX graph under its parameter name.

    Raises:
        CheckpointError: not an ONNX file, or values outside of it.
    """
    content = memoryview(file.read_bytes())
    try:
        graph = next(value for number, value in _fields(content) if number == 7)
        nodes = [_node(value) for number, value in _fields(_bytes(graph)) if number == 1]
        values = dict(_tensor(_bytes(value), file) for number, value in _fields(_bytes(graph)) if number == 5)
    except CheckpointError:
        raise
    except (StopIteration, IndexError, ValueError) as error:
        raise CheckpointError(f"{file} is not an ONNX file, or it is cut short") from error
    users = {name: node for node in nodes for name in node.inputs if name in values}
    named: dict[str, Tensor] = {}
    for name, tensor in values.items():
        if name.startswith("onnx::") and name in users:
            node = users[name]
            module = node.path.strip("/").rpartition("/")[0].replace("/", ".")
            is_linear = node.op == "MatMul" and tensor.ndim == 2
            name = f"{module}.{'weight' if is_linear else node.op}"
            tensor = tensor.T.contiguous() if is_linear else tensor
        named[name] = tensor
    return named


def _node(value: "int | memoryview") -> Node:
    inputs, path, op = [], "", ""
    for number, content in _fields(_bytes(value)):
        if number == 1:
            inputs.append(_text(content))
        elif number == 3:
            path = _text(content)
        elif number == 4:
            op = _text(content)
    return Node(op, path, tuple(inputs))


def _tensor(message: memoryview, file: Path) -> tuple[str, Tensor]:
    shape: list[int] = []
    name = ""
    kind: int | memoryview = 0
    raw: memoryview | None = None
    for number, content in _fields(message):
        if number == 1:
            shape += [content] if isinstance(content, int) else _varints(content)
        elif number == 2:
            kind = content
        elif number == 8:
            name = _text(content)
        elif number == 9:
            raw = _bytes(content)
    dtype = TYPES.get(kind) if isinstance(kind, int) else None
    if dtype is None or (raw is None and 0 not in shape):
        raise CheckpointError(
            f"{file}: {name} is of data type {kind} or stored outside of the file; unsupported"
        )
    if not raw:
        return name, torch.empty(shape, dtype=dtype)
    # The copy gives the values the alignment that bytes in the middle of a file do not have.
    return name, torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Walk a protobuf message: (field number, integer or bytes)."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == BYTES:
            length, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise IndexError(f"field {number} reaches past the end")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7


def _varints(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("an integer where a message was expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")

"""The parameters of an ONNX file under the names that they had in PyTorch.

Exporting from PyTorch keeps most parameter names. Matrices of linear layers become transposed constants such
as `onnx::MatMul_1966`; they are named here after the node that uses them, and transposed back: node
`/encoder/key/MatMul` -> `encoder.key.weight`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError


def read_initializers(file: Path) -> dict[str, Tensor]:
    """Return every initial value of an ONNX graph under its parameter name.

    Raises:
        CheckpointError: the `onnx` package is missing, or the file is not ONNX or damaged.
    """
    try:
        import onnx
    except ImportError as error:
        raise CheckpointError(
            f"{file}: ONNX files need the onnx package: pip install 'owl2[onnx]'"
        ) from error
    try:
        graph = onnx.load(file).graph
        values = {value.name: _tensor(onnx.numpy_helper.to_array(value)) for value in graph.initializer}
    except Exception as error:  # of protobuf, of onnx, of numpy: each has its own
        raise CheckpointError(f"{file} is not an ONNX file, or it is cut short: {error}") from error
    users = {name: node for node in graph.node for name in node.input if name in values}
    named: dict[str, Tensor] = {}
    for name, tensor in values.items():
        if name.startswith("onnx::") and name in users:
            node = users[name]
            module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            is_linear = node.op_type == "MatMul" and tensor.ndim == 2
            name = f"{module}.{'weight' if is_linear else node.op_type}"
            tensor = tensor.T.contiguous() if is_linear else tensor
        named[name] = tensor
    return named


def _tensor(values: np.ndarray) -> Tensor:
    if values.dtype.name == "bfloat16":  # a type of the ml_dtypes package, which PyTorch does not know
        return torch.from_numpy(values.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())

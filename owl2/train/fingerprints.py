"""Fingerprints of parameters, the same however the parameters are sharded.

States and adapters do not contain the weights that were frozen; the fingerprints tell whether they are
combined with the right ones.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from owl2.checkpoint.fingerprint import fingerprint
from owl2.train.parallel import local_part, num_shards
from owl2.train.ranks import Ranks


def frozen_fingerprints(model: nn.Module, ranks: Ranks) -> dict[str, int]:
    """The fingerprint of each frozen parameter; called by every rank.

    A layer that keeps its matrix in four bits has the matrix's own fingerprint as `fingerprint`: the codes
    follow from the matrix, but not to the last bit on every device. Every rank holds it whole.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    marks = fingerprints_of(frozen, ranks)
    for name, module in model.named_modules():
        if isinstance(mark := getattr(module, "fingerprint", None), int):
            marks[f"{name}.weight"] = mark
    return marks


def fingerprints_of(
    parameters: Mapping[str, Tensor], ranks: Ranks, number: Callable[[Tensor], int] = fingerprint
) -> dict[str, int]:
    """`number` of each whole parameter, where the number of a whole is the sum of its parts' numbers."""
    sums = ranks.gather([number(local_part(parameter)) for parameter in parameters.values()])
    marks = {}
    for (name, parameter), parts in zip(parameters.items(), zip(*sums, strict=True), strict=True):
        copies = ranks.size // num_shards(parameter)  # ranks that hold the same part
        marks[name] = sum(parts) // copies % 2**64
    return marks


def model_fingerprint(model: nn.Module, frozen: Mapping[str, int], ranks: Ranks) -> str:
    """One fingerprint of all parameters, of which `frozen` has some already; called by every rank."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    marks = {**frozen, **fingerprints_of(trainable, ranks)}
    return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()[:16]

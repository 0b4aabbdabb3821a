"""Fingerprints of frozen parameters, the same however the parameters are sharded.

States and adapters do not contain the weights that were frozen; these fingerprints tell whether they are put
together with the right ones.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from owl2.checkpoint.fingerprint import fingerprint
from owl2.train.adapters.qlora import FourBitLinear
from owl2.train.parallel import local_part, num_shards
from owl2.train.ranks import Ranks


def frozen_fingerprints(model: nn.Module, ranks: Ranks) -> dict[str, int]:
    """A number for the values of each frozen parameter; called by every rank.

    A matrix that is kept in four bits has the fingerprint of its values before: the codes follow from them,
    but not to the last bit on every device. All ranks hold it whole.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    marks = fingerprints_of(frozen, ranks)
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            marks[f"{name}.weight"] = module.fingerprint
    return marks


def fingerprints_of(
    parameters: Mapping[str, Tensor], ranks: Ranks, number: Callable[[Tensor], int] = fingerprint
) -> dict[str, int]:
    """`number` of the whole of each parameter; it must be the sum of that of its parts."""
    sums = ranks.gather([number(local_part(parameter)) for parameter in parameters.values()])
    marks = {}
    for (name, parameter), parts in zip(parameters.items(), zip(*sums, strict=True), strict=True):
        copies = ranks.size // num_shards(parameter)  # ranks that hold the same part
        marks[name] = sum(parts) // copies % 2**64
    return marks

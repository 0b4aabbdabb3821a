"""Selective checkpointing keeps the attention of a GPU: it is computed once, not again for the backward pass.

The operation has no kernel for CPUs, so tensors have shapes and no contents here.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from owl2.train.parallel import keep_products


class Calls(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("is_selective", "times"), [(True, 1), (False, 2)])
def test_attention_of_packed_tokens_on_a_gpu_is_computed_once(is_selective: bool, times: int) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = varlen_attn(q.sin(), k, v, ends, ends, 4, 4, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        return out

    context: dict[str, Any] = {}
    if is_selective:
        context["context_fn"] = partial(create_selective_checkpoint_contexts, keep_products)
    with FakeTensorMode(), Calls() as calls:
        ends = torch.zeros(3, dtype=torch.int32)
        q, k, v = (torch.zeros(6, 2, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        checkpoint(attention, q, k, v, use_reentrant=False, **context).sum().backward()
    assert calls.counts[torch.ops.torch_attn._varlen_attn.default] == times
    assert calls.counts[torch.ops.torch_attn._varlen_attn_backward.default] == 1
    assert calls.counts[torch.ops.aten.sin.default] == 2

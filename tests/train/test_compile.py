"""Compiling the layers of a model changes neither its losses nor any other model of the process."""

import pytest
import torch
from torch import Tensor

from owl2.model import Owl2Model, attention, decoder, packed_layout, targets_of
from owl2.train.config import ParallelConfig
from owl2.train.parallel import rewrite_layers
from tests.model.tiny import IMAGE, assert_near, images_of, random_samples, tiny_model

COMPILED = ParallelConfig(compile="eager")
SPECS = ("3 I 5", "9", "1 I 4")


@torch.no_grad()
def losses(model: Owl2Model, *specs: str) -> Tensor:
    samples = random_samples(*specs)
    ids, labels = (torch.cat([getattr(s, name) for s in samples]) for name in ("ids", "labels"))
    layout = packed_layout(ids, [len(sample.ids) for sample in samples], IMAGE)
    return model.token_losses(ids, layout, targets_of(labels, layout), images_of(samples))


def test_a_compiled_model_has_the_losses_of_another_which_is_not_compiled() -> None:
    compiled, other = tiny_model(), tiny_model()
    expected = losses(other, *SPECS)
    before = [dict(vars(module)) for module in other.modules()]
    rewrite_layers(compiled, COMPILED)
    assert decoder.attend is attention.attend
    assert [dict(vars(module)) for module in other.modules()] == before
    assert torch.equal(losses(other, *SPECS), expected)
    assert_near(losses(compiled, *SPECS), expected)
    assert_near(losses(compiled, "4", "2 I 3"), losses(other, "4", "2 I 3"))


def test_attention_of_packed_samples_is_never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is split by lengths that change with every batch, and would be compiled for each of them."""
    is_compiling: list[bool] = []

    def attend(*inputs: object) -> Tensor:
        is_compiling.append(torch.compiler.is_compiling())
        return attention.attend(*inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder, "attend", attend)
    model = tiny_model()
    rewrite_layers(model, COMPILED)
    losses(model, *SPECS)
    assert is_compiling == [False, False]

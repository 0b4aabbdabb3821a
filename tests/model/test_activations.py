"""What the decoder keeps for its backward pass, and that computing the rest again changes no gradient."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from owl2.model import packed_layout
from owl2.model.attention import SharedInputs
from owl2.model.decoder import SwiGLU, rotary_tables
from owl2.model.mam import NormByModality
from tests.model.tiny import IMAGE, assert_near, images_of, random_samples, tiny_model

SPECS = ("3 I 5", "9", "1 I 4")


def wide(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def test_the_gradients_of_the_norm_by_modality_are_its_derivatives() -> None:
    is_visual = torch.tensor([[False], [True], [True], [False], [False]])
    inputs = (wide(5, 6, seed=0), wide(6, seed=1), wide(6, seed=2))
    assert gradcheck(lambda x, text, vision: NormByModality.apply(x, text, vision, is_visual, 1e-6), inputs)


def test_the_gradients_of_the_gated_product_are_its_derivatives() -> None:
    assert gradcheck(SwiGLU.apply, (wide(3, 4, seed=0), wide(3, 4, seed=1)))
    gate, up = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(SwiGLU.apply(gate, up), F.silu(gate) * up)


def test_a_frozen_gain_gets_no_gradient_and_the_tokens_still_theirs() -> None:
    x, text, vision = wide(4, 6, seed=0), wide(6, seed=1).detach(), wide(6, seed=2)
    is_visual = torch.tensor([[False], [True], [False], [True]])
    expected = torch.autograd.grad(
        (F.rms_norm(x, (6,), None, 1e-6) * torch.where(is_visual, vision, text)).square().sum(), (x, vision)
    )
    NormByModality.apply(x, text, vision, is_visual, 1e-6).square().sum().backward()
    assert_near(x.grad, expected[0])
    assert_near(vision.grad, expected[1])
    assert text.grad is None


def test_a_layer_keeps_nine_widths_and_three_of_the_ffn_a_token() -> None:
    model = tiny_model(hidden_size=64, intermediate_size=256)
    config, layer = model.config.decoder, model.model.layers[0]
    ids = torch.full((512,), 5)
    ids[100:150] = IMAGE
    layout = packed_layout(ids, [256, 256], IMAGE)
    rotary = rotary_tables(config, layout.positions, torch.float32)
    x = torch.randn(512, 64, requires_grad=True)
    given = [*model.parameters(), *rotary, *(t for t in vars(layout).values() if isinstance(t, Tensor))]
    kept = kept_bytes(lambda: layer(x, SharedInputs(layout, rotary)), given)
    heads = 4 * config.num_attention_heads  # the log-sum-exp of attention
    assert kept <= 512 * (4 * (9 * 64 + 3 * 256) + heads)


def kept_bytes(run: Callable[[], object], given: list[Tensor]) -> int:
    """Bytes of the storages that a forward pass keeps for its backward pass and that did not exist before."""
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    assert out is not None
    return sum(kept.values())


def test_rows_that_are_asked_for_leave_the_decoder_as_if_all_did() -> None:
    samples = random_samples(*SPECS)
    ids = torch.cat([sample.ids for sample in samples])
    layout = packed_layout(ids, [len(sample.ids) for sample in samples], IMAGE)
    rows = torch.tensor([2, 7, 8, 20, 11])  # text and visual, not in order
    assert layout.is_visual[rows].any()
    assert not layout.is_visual[rows].all()
    for shapes in (layout, dataclasses.replace(layout, is_static=True)):
        models = [tiny_model(), tiny_model()]
        embedded = [model.embed(ids, shapes, images_of(samples)) for model in models]
        everything = models[0].hidden(embedded[0], shapes)[rows]
        some = models[1].hidden(embedded[1], shapes, rows=rows)
        assert_near(some, everything)
        everything.square().sum().backward()
        some.square().sum().backward()
        for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None and two.grad is not None:
                assert_near(two.grad, one.grad, rtol=1e-4, atol=1e-4, name=name)

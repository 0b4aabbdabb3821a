"""Half precision stays close to float32, and what must not be rounded is not."""

import pytest
import torch

from owl2.model import build, preset
from owl2.model.decoder import rotary_frequencies, rotary_tables, rotate
from tests.model.tiny import assert_near, lively, pad, random_samples, tiny_config, tiny_model

SPECS = ("3 I 5", "9", "1 I 2 I 1")
ERROR = {torch.bfloat16: 0.05, torch.float16: 0.006}


@pytest.mark.parametrize("dtype", ERROR)
@torch.no_grad()
def test_a_half_precision_model_is_close_to_float32(dtype: torch.dtype) -> None:
    model, batch = tiny_model(), pad(random_samples(*SPECS))
    exact = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
    model.to(dtype)
    assert model.dtype == dtype
    rounded = model(batch.input_ids, batch.attention_mask, batch.pixel_values)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() / exact.norm() < ERROR[dtype]


@torch.no_grad()
def test_positions_are_not_rounded_with_the_model() -> None:
    config = preset("tiny").decoder
    positions = torch.tensor([0, 1, 255, 257, 2047])
    exact, _ = rotary_tables(config, positions, torch.float32)
    rounded, _ = rotary_tables(config, positions, torch.bfloat16)
    # Rounding the result costs 2^-9; computing angles in bfloat16 would be wrong by whole turns at 2047.
    assert_near(rounded.float(), exact, rtol=0, atol=2**-8)
    model = tiny_model().to(torch.bfloat16)
    frequencies = rotary_frequencies(config)
    assert frequencies.dtype == torch.float32
    stored = model.get_buffer("model.layers.0.self_attn.rotary_emb.inv_freq").float()
    assert not torch.equal(stored, frequencies)


@torch.no_grad()
def test_long_prompts_stay_close_to_float32_in_bfloat16() -> None:
    model, (sample,) = tiny_model(), random_samples("I 1500")
    exact = model(sample.ids[None], pixel_values=sample.images)
    rounded = model.to(torch.bfloat16)(sample.ids[None], pixel_values=sample.images)
    late = slice(1300, None)
    assert (rounded - exact)[:, late].norm() / exact[:, late].norm() < ERROR[torch.bfloat16]


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    config = preset("tiny").decoder
    q, k = torch.randn(2, 1, 1, config.head_dim, generator=torch.Generator().manual_seed(0))

    def score(at_q: int, at_k: int) -> torch.Tensor:
        tables = [rotary_tables(config, torch.tensor([p]), torch.float32) for p in (at_q, at_k)]
        return (rotate(q, tables[0]) * rotate(k, tables[1])).sum()

    assert_near(score(7, 2), score(1007, 1002), rtol=1e-3, atol=1e-3)
    assert (score(7, 2) - score(7, 6)).abs() > 1e-2


@pytest.mark.parametrize("dtype", ERROR)
def test_build_initialises_in_the_given_dtype_with_position_tables_of_float32_accuracy(
    dtype: torch.dtype,
) -> None:
    model = build("tiny", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    reference = build("tiny")
    for name, buffer in model.named_buffers():
        assert_near(buffer, reference.get_buffer(name).to(dtype), rtol=0, atol=0)


@torch.no_grad()
def test_initial_weights_are_finite_seeded_and_of_the_documented_spread() -> None:
    config = tiny_config()
    model, same, other = (build(config, seed=seed) for seed in (0, 0, 1))
    state = model.state_dict()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in state.items())
    assert not torch.equal(model.head_weight, other.head_weight)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif "norm" in name or "ffn_ln" in name:
            assert (parameter == 1).all(), name
        else:
            is_projection = parameter.ndim == 2 and "embed" not in name
            spread = parameter.shape[1] ** -0.5 if is_projection else 0.02
            assert 0.6 * spread < parameter.std() < 1.4 * spread, name
    assert lively(model, seed=1).head_weight.std() > 0.1

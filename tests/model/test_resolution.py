"""Other image sizes: interpolated positions, the same numbers before and after resizing, LLRD groups."""

from typing import Any

import pytest
import torch

from owl2.model import ConfigError, Owl2Config, build
from owl2.model.abstractor import sincos_2d
from owl2.model.config import VisionConfig
from owl2.model.vision import VisionEncoder, interpolate_positions
from tests.model.tiny import assert_near, lively, tiny_model

PIXELS = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_setting_the_image_size_gives_the_numbers_of_interpolating_on_the_fly() -> None:
    model = tiny_model()
    before = model.encode_images(PIXELS)
    model.set_image_size(112)
    assert model.model.vision_model.embeddings.position_embedding.shape == (1, 65, 32)
    assert_near(model.encode_images(PIXELS), before)


@torch.no_grad()
def test_the_new_size_is_the_models_own_in_config_and_state() -> None:
    model = tiny_model()
    model.set_image_size(112)
    vision = model.model.vision_model
    assert vision.config.image_size == vision.embeddings.config.image_size == 112
    rebuilt = build(Owl2Config.from_dict(model.config.to_dict()))
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt.encode_images(PIXELS), model.encode_images(PIXELS))
    tables = [buffer for name, buffer in model.named_buffers() if name.endswith("k_pos_embed")]
    assert len(tables) == 2
    assert all(torch.equal(table, sincos_2d((8, 8), 32, has_cls=True)) for table in tables)


def test_positions_learn_at_the_new_size() -> None:
    model = tiny_model()
    model.set_image_size(112)
    model.encode_images(PIXELS).square().sum().backward()
    table = model.get_parameter("model.vision_model.embeddings.position_embedding")
    assert table.requires_grad
    assert table.grad is not None
    assert table.grad.ne(0).any(dim=-1).all()


def test_a_frozen_position_table_stays_frozen_at_the_new_size() -> None:
    model = tiny_model().requires_grad_(False)
    model.set_image_size(112)
    assert not any(p.requires_grad for p in model.parameters())


def test_interpolation_keeps_the_class_token_and_smooth_tables() -> None:
    ramp = torch.linspace(0, 1, 4).repeat(4, 1)  # brightness rises along columns
    table = torch.cat((torch.tensor([9.0]), ramp.flatten()))[None, :, None]
    wide = interpolate_positions(table, (8, 8), has_cls=True)
    assert wide.shape == (1, 65, 1)
    assert wide[0, 0, 0] == 9.0
    image = wide[0, 1:, 0].unflatten(0, (8, 8))
    assert_near(image, image[:1].expand(8, 8))
    assert (image[0].diff() > 0).all()
    assert torch.equal(interpolate_positions(table, (4, 4), has_cls=True), table)


@torch.no_grad()
def test_oblong_images_run_and_rows_and_columns_are_not_swapped() -> None:
    model = tiny_model()
    wide = PIXELS[:, :, :56]
    features = model.encode_images(wide)
    assert features.shape == (2, 5, 64)
    assert (features - model.encode_images(wide.transpose(2, 3))).abs().max() > 1e-2
    # Column 1 of the first row comes second in the 2-D table, and its first half encodes the column.
    table = sincos_2d((2, 3), 8, has_cls=True)
    assert not table[0].any()
    assert_near(table[1, :4], table[4, :4])
    assert_near(table[1, 4:], table[2, 4:])
    assert not torch.equal(table[1, :4], table[2, :4])


def test_a_size_that_the_patch_does_not_divide_is_an_error_with_both_numbers() -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match="patch_size = 14 must divide image_size = 100"):
        model.set_image_size(100)
    assert model.config.vision.image_size == 56
    with pytest.raises(ValueError, match=r"56 x 60 pixels.*multiples of the patch, 14"):
        model.encode_images(torch.zeros(1, 3, 60, 56))


def test_setting_the_same_size_changes_nothing() -> None:
    model = tiny_model()
    table = model.model.vision_model.embeddings.position_embedding
    model.set_image_size(56)
    assert model.model.vision_model.embeddings.position_embedding is table


DINO = {"hidden_act": "gelu", "use_pre_layernorm": False, "use_patch_bias": True, "use_layer_scale": True}


@pytest.mark.parametrize("fields", [{}, DINO, {"use_post_layernorm": False, "use_cls_token": False}])
def test_layer_groups_hold_every_vision_parameter_once_from_input_to_output(fields: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "image_size": 28,
    }
    encoder = VisionEncoder(VisionConfig(num_hidden_layers=3, **sizes, **fields))
    groups = encoder.layer_groups()
    assert len(groups) == 4
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    assert all(name.startswith("embeddings.") for name in groups[0])
    for index, group in enumerate(groups[1:]):
        inside = [name for name in group if not name.startswith("post_layernorm.")]
        assert all(name.startswith(f"encoder.layers.{index}.") for name in inside)


def test_vit_l_has_25_groups_so_that_decay_09_reaches_008_at_the_input() -> None:
    groups = build("owl2_7b", device="meta").model.vision_model.layer_groups()
    assert len(groups) == 25
    multipliers = [0.9 ** (len(groups) - 1 - i) for i in range(len(groups))]
    assert multipliers[-1] == 1.0
    assert multipliers[0] == pytest.approx(0.0798, abs=1e-4)


@torch.no_grad()
def test_an_encoder_without_class_token_feeds_the_abstractor_patches_only() -> None:
    config = tiny_model().config
    vision = VisionConfig(**{**vars(config.vision), "use_cls_token": False})
    model = lively(build(config.replace(vision=vision)))
    assert model.model.vision_model(PIXELS).shape == (2, 64, 32)
    before = model.encode_images(PIXELS)
    model.set_image_size(112)
    assert_near(model.encode_images(PIXELS), before)

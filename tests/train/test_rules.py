"""The rule table: the first match decides, and a table that does not fit the model is an error."""

import pytest
import torch

from owl2.model import Owl2Model, build
from owl2.train.config import OptimConfig
from owl2.train.optim import make_optimizer, set_lr
from owl2.train.rules import Assignment, Rule, RuleError, apply_freeze, assign_rules
from tests.train.tiny import STAGE_1, STAGE_2


@pytest.fixture(scope="module")
def tiny() -> Owl2Model:
    return build("tiny", device="meta")


@pytest.fixture(scope="module")
def released() -> Owl2Model:
    """mPLUG-Owl2-7B without storage."""
    return build("owl2_7b", device="meta")


def by_name(model: Owl2Model, rules: list[Rule], weight_decay: float = 0.05) -> dict[str, Assignment]:
    return {assignment.name: assignment for assignment in assign_rules(model, rules, weight_decay)}


def test_the_first_rule_that_matches_decides(tiny: Owl2Model) -> None:
    rules = [
        Rule(match="model.vision_model.embeddings.*", frozen=True),
        Rule(match="model.vision_model.*", lr=0.1),
        Rule(match="*", lr=0.5, weight_decay=0.2),
    ]
    found = by_name(tiny, rules)
    assert found["model.vision_model.embeddings.cls_token"].rule is rules[0]
    assert found["model.vision_model.encoder.layers.0.mlp.fc1.weight"].lr == 0.1
    assert found["model.vision_model.encoder.layers.0.mlp.fc1.weight"].weight_decay == 0.05
    assert found["lm_head.weight"].lr == 0.5
    assert found["lm_head.weight"].weight_decay == 0.2
    assert found.keys() == {name for name, _ in tiny.named_parameters()}


def test_a_rule_that_decides_for_nothing_is_an_error_that_names_the_nearest_parameters(
    tiny: Owl2Model,
) -> None:
    rules = [Rule(match="model.visoin_model.embeddings.cls_token"), Rule(match="*", frozen=True)]
    with pytest.raises(
        RuleError, match=r"'model.visoin_model.*nearest names: model.vision_model.embeddings.cls"
    ):
        assign_rules(tiny, rules, 0.05)
    shadowed = [Rule(match="*"), Rule(match="model.vision_model.*", frozen=True)]
    with pytest.raises(
        RuleError, match=r"'model.vision_model.\*' decides for no parameter \(earlier rules win\)"
    ):
        assign_rules(tiny, shadowed, 0.05)
    with pytest.raises(RuleError, match="earlier rules win"):
        assign_rules(tiny, [Rule(match="*"), Rule(match="*")], 0.05)


def test_a_parameter_without_a_rule_is_an_error_that_names_it_with_its_shape(tiny: Owl2Model) -> None:
    with pytest.raises(
        RuleError,
        match=r"model.embed_tokens.weight \(128, 64\); nearest rule: 'model.embed_token'; end the table",
    ):
        assign_rules(tiny, [Rule(match="model.vision_model.*"), Rule(match="model.embed_token")], 0.05)
    with pytest.raises(RuleError, match="rules is empty"):
        assign_rules(tiny, [], 0.05)


def test_layer_decay_outside_the_vision_encoder_is_an_error(tiny: Owl2Model) -> None:
    with pytest.raises(RuleError, match=r"layer_decay of rule '\*' reaches .*, outside the vision encoder"):
        assign_rules(tiny, [Rule(match="*", layer_decay=0.9)], 0.05)


def test_settings_of_a_frozen_rule_and_a_table_that_freezes_everything_are_errors(tiny: Owl2Model) -> None:
    with pytest.raises(RuleError, match=r"'model.vision_model.\*' is frozen, so its lr"):
        assign_rules(tiny, [Rule(match="model.vision_model.*", frozen=True, lr=0.1), Rule(match="*")], 0.05)
    with pytest.raises(RuleError, match="all 1 rules are frozen, so nothing would be trained"):
        assign_rules(tiny, [Rule(match="*", frozen=True)], 0.05)


def test_layer_wise_decay_of_the_released_vit_l_is_the_papers(released: Owl2Model) -> None:
    found = by_name(released, STAGE_1)
    prefix = "model.vision_model."
    rates = {name.removeprefix(prefix): a.lr for name, a in found.items() if name.startswith(prefix)}
    embeddings = ("cls_token", "position_embedding", "patch_embed.weight", "pre_layernorm.weight")
    assert {rates[f"embeddings.{name}"] for name in embeddings} == {0.9**24}
    for layer in range(24):
        ours = {rate for name, rate in rates.items() if name.startswith(f"encoder.layers.{layer}.")}
        assert ours == {0.9 ** (23 - layer)}, layer
    assert rates["encoder.layers.23.mlp.fc2.weight"] == 1.0
    assert rates["post_layernorm.weight"] == 1.0
    assert {a.lr for name, a in found.items() if not name.startswith(prefix)} == {1.0}


def test_stage_1_trains_vision_abstractor_and_visual_weights_of_the_released_model(
    released: Owl2Model,
) -> None:
    found = by_name(released, STAGE_1)
    learns = {name: a for name, a in found.items() if not a.rule.frozen}
    visual = {name for name in found if ".multiway.1." in name}
    assert len(visual) == 32 * 4  # two norms, key and value in each layer
    outside = {name for name in found if name.startswith(("model.vision_model", "model.visual_abstractor"))}
    assert learns.keys() == visual | outside
    count = sum(released.get_parameter(name).numel() for name in visual)
    assert count == 32 * (2 * 4096 + 2 * 4096 * 4096)


def test_vectors_never_decay_and_frozen_parameters_are_in_no_group() -> None:
    model = build("tiny")
    assignments = assign_rules(model, STAGE_1, weight_decay=0.05)
    apply_freeze(model, assignments)
    optimizer = make_optimizer(model, assignments, OptimConfig())
    names = {parameter: name for name, parameter in model.named_parameters()}
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {names[p] for p in grouped} == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    for group in optimizer.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
        assert group["betas"] == (0.9, 0.98)
        assert group["eps"] == 1e-6
    assert not optimizer.state


def test_each_group_learns_at_its_multiple_of_the_rate() -> None:
    model = build("tiny")
    assignments = assign_rules(model, STAGE_2, weight_decay=0.0)
    optimizer = make_optimizer(model, assignments, OptimConfig())
    set_lr(optimizer, 0.5)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[model.model.vision_model.embeddings.cls_token] == 0.5 * 0.9**2
    assert rate[model.model.vision_model.post_layernorm.weight] == 0.5
    assert rate[model.lm_head.weight] == 0.5
    before = model.lm_head.weight.detach().clone()
    set_lr(optimizer, 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(model.lm_head.weight, before)

"""Every shipped configuration is read by the real parser and fits the model it is for."""

from pathlib import Path

import pytest

from owl2.cli.train import read_config
from owl2.model import build
from owl2.train.config import TrainConfigError
from owl2.train.lora import add_adapters
from owl2.train.rules import assign_rules

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_adds_up_and_its_rules_fit_the_model(path: Path) -> None:
    config = read_config([str(path)])
    config.check()
    model = build("owl2_7b", device="meta")
    if config.lora is not None:
        pytest.importorskip("peft")
        add_adapters(model, config.lora)
    assign_rules(model, config.rules, config.optim.weight_decay)


def test_stage_1_freezes_the_language_model_of_llama_2_and_trains_the_rest() -> None:
    config = read_config([str(CONFIGS[0].with_name("pretrain.yaml"))])
    model = build("owl2_7b", device="meta")
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    frozen = sum(model.get_parameter(a.name).numel() for a in assignments if a.rule.frozen)
    assert frozen == 6_738_415_616


def test_an_override_behind_the_file_wins() -> None:
    config = read_config([str(CONFIGS[0].with_name("tiny.yaml")), "--optim.lr", "0.5", "--steps=7"])
    assert (config.optim.lr, config.steps, config.optim.warmup_steps) == (0.5, 7, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], "nearest valid key is 'optim.lr'"),
        (["--stepz=1"], "nearest valid key is 'steps'"),
        (["--rules", '[{match: "*", frozn: true}]'], "nearest valid key is 'frozen'"),
        (["--steps", "many"], "steps"),
    ],
)
def test_an_unknown_key_or_a_wrong_type_is_named(words: list[str], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        read_config([str(CONFIGS[0].with_name("tiny.yaml")), *words])


def test_a_batch_that_does_not_add_up_shows_the_arithmetic() -> None:
    config = read_config([str(CONFIGS[0].with_name("tiny.yaml")), "--global_batch_size", "9"])
    with pytest.raises(TrainConfigError, match="4 x accumulation 2"):
        config.check()

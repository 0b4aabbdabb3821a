"""Every shipped configuration is read by the real parser and fits the model it is for."""

from pathlib import Path

import pytest

from owl2.cli.train import read_config
from owl2.model import build, preset
from owl2.train.adapters.lora import add_adapters
from owl2.train.config import TrainConfigError
from owl2.train.rules import assign_rules

GPUS = {"pretrain": 64, "instruct": 64, "lora": 1, "qlora": 1, "finetune": 1, "tiny": 1}
"""What each stage is for as it stands."""
CONFIGS = sorted((Path(__file__).parents[1] / "owl2/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_adds_up_and_its_rules_fit_the_model(path: Path) -> None:
    config = read_config([str(path)])
    config.check(GPUS[path.stem])
    assert f"For {GPUS[path.stem]} " in path.read_text()
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
        (["--optim.lrr", "1"], "the nearest is '--optim.lr'"),
        (["--stepz=1"], "the nearest is '--steps'"),
        (["--rules", '[{match: "*", frozn: true}]'], "nearest valid key is 'frozen'"),
        (["--steps", "many"], "--steps must be a whole number, not 'many'"),
    ],
)
def test_an_unknown_key_or_a_wrong_type_is_named(words: list[str], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        read_config([str(CONFIGS[0].with_name("tiny.yaml")), *words])


def test_a_batch_that_does_not_add_up_shows_the_arithmetic() -> None:
    config = read_config([str(CONFIGS[0].with_name("tiny.yaml")), "--global_batch_size", "9"])
    with pytest.raises(
        TrainConfigError, match=r"8 x accumulation 8 .* take --micro_batch_size 3 --accum.* 3$"
    ):
        config.check()


TABLE_15 = {
    "pretrain": ((224, 256, 1e-4, 1e-6, 0.05, 42_500, 1000, 8192), (16, 1)),
    "instruct": ((448, 2048, 2e-5, 1e-7, 0.0, 4800, 250, 256), (1, 2)),
}
"""Rows from "Image resolution" down; then gradient accumulation, where 16 does not go with the batch and so
many ranks in stage 2, and model parallelism."""


@pytest.mark.parametrize("name", TABLE_15)
def test_the_stages_of_the_paper_have_every_row_of_table_15(name: str) -> None:
    config = read_config([str(CONFIGS[0].with_name(f"{name}.yaml"))])
    optim, parallel = config.optim, config.parallel
    rates = (optim.lr, optim.min_lr, optim.weight_decay, config.steps, optim.warmup_steps)
    rows = (config.image_size, config.data.max_tokens, *rates, config.global_batch_size)
    assert (rows, (config.accumulation, parallel.tensor)) == TABLE_15[name]
    assert (optim.betas, optim.eps, optim.max_grad_norm) == ((0.9, 0.98), 1e-6, 1.0)
    assert (config.dtype, parallel.activation_checkpointing) == ("bfloat16", "full")
    assert config.rules[0].match == "model.vision_model.*"
    assert config.rules[0].layer_decay == 0.9, "section 4.1, where the table has 0"
    assert preset("owl2_7b").abstractor.num_learnable_queries == 64

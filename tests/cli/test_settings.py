"""Settings of a stage: files and options laid over each other, where a list replaces the earlier list."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from owl2.__main__ import main
from owl2.cli.train import read_config
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.rules import Rule

OLD = {
    "weight": 3,
    "image_root": "/old/images",
    "augment": "crop_flip",
    "turns": "apart",
    "shuffle": "slices",
}
STAGE: dict[str, Any] = {
    "run": "runs/a",
    "model": "base",
    "steps": 10,
    "global_batch_size": 1,
    "data": {"seed": 7, "sources": [{"name": f"old{n}", "path": f"/{n}.jsonl", **OLD} for n in range(2)]},
    "rules": [{"match": "a.*", "lr": 0.1, "layer_decay": 0.9}, {"match": "*", "frozen": True}],
    "optim": {"lr": 0.5, "warmup_steps": 2},
    "lora": {"rank": 8, "targets": ["a", "b"]},
    "validation": {"sources": [{"name": "held", "path": "held.jsonl", **OLD}], "every": 5},
}


@pytest.fixture
def stage(tmp_path: Path) -> str:
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(STAGE))
    return str(tmp_path / "stage.yaml")


def laid_over(stage: str, how: str, settings: dict[str, Any]) -> TrainConfig:
    """The stage with `settings` from a later file, or each as an option."""
    if how == "file":
        later = Path(stage).with_name("later.yaml")
        later.write_text(yaml.safe_dump(settings))
        return read_config([stage, "--config", str(later)])
    options = [
        f"--{group}.{key}={json.dumps(value)}" if key else f"--{group}={json.dumps(value)}"
        for group, inner in settings.items()
        for key, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
    ]
    return read_config([stage, *options])


@pytest.mark.parametrize("how", ["file", "option"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_later_sources_take_nothing_from_earlier_ones(stage: str, how: str, number: int) -> None:
    mine = [{"name": f"mine{n}", "path": f"mine{n}.jsonl"} for n in range(number)]
    sources = laid_over(stage, how, {"data": {"sources": mine}}).data.sources
    assert [source.name for source in sources] == [source["name"] for source in mine]
    for source in sources:
        kept = (source.weight, source.image_root, source.augment, source.turns, source.shuffle)
        assert kept == (1.0, None, "none", "together", None)


@pytest.mark.parametrize("how", ["file", "option"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_later_rules_take_nothing_from_earlier_ones(stage: str, how: str, number: int) -> None:
    rules = laid_over(stage, how, {"rules": [{"match": f"m{n}"} for n in range(number)]}).rules
    assert rules == [Rule(match=f"m{n}") for n in range(number)]


@pytest.mark.parametrize("how", ["file", "option"])
def test_lists_in_groups_that_may_be_absent_are_replaced_too(stage: str, how: str) -> None:
    held = [{"name": "other", "path": "other.jsonl"}]
    config = laid_over(stage, how, {"validation": {"sources": held}, "lora": {"targets": ["c"]}})
    assert config.validation is not None
    assert config.lora is not None
    (source,) = config.validation.sources
    assert (source.name, source.weight, source.image_root) == ("other", 1.0, None)
    assert config.lora.targets == ["c"]
    assert (config.validation.every, config.lora.rank) == (5, 8), "a group keeps what is not named again"


def test_groups_are_merged_key_by_key_in_the_order_of_the_command_line(stage: str) -> None:
    later = Path(stage).with_name("later.yaml")
    later.write_text("optim: {lr: 0.25}\nsteps: 20")
    config = read_config([stage, "--steps", "30", "--config", str(later), "--optim.min-lr", "0.1"])
    assert (config.steps, config.optim.lr, config.optim.min_lr, config.optim.warmup_steps) == (
        20,
        0.25,
        0.1,
        2,
    )
    config = read_config(["--steps", "30", stage, "--optim={eps: 0.5, warmup_steps: 1}"])
    assert (config.steps, config.optim.lr, config.optim.eps, config.optim.warmup_steps) == (30, 0.5, 0.5, 1)


def test_null_takes_a_group_away_and_another_option_brings_it_back(stage: str) -> None:
    assert read_config([stage, "--lora", "null"]).lora is None
    lora = read_config([stage, "--lora", "null", "--lora.rank", "2"]).lora
    assert lora is not None
    assert (lora.rank, lora.targets) == (2, ["model.layers.*"])
    ema = read_config([stage, "--ema.decay=0.5"]).ema
    assert ema is not None
    assert ema.decay == 0.5


def test_yaml_that_is_shared_by_an_anchor_is_not_changed_in_its_other_place(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "run: a\nmodel: b\nsteps: 5\nrules: [{match: '*'}]\n"
        "data: {sources: [&one {name: a, path: a.jsonl}]}\n"
        "validation: {sources: [*one]}\n"
    )
    config = read_config([str(tmp_path / "a.yaml"), "--validation.sources", "[{name: c, path: c.jsonl}]"])
    assert config.data.sources[0].name == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sources: [{path: x.jsonl}]}", r"a.yaml: missing: data.sources\[0\].name"),
        ("steps: 5", "a.yaml: missing: run, model, data, rules"),
        ("stepz: 5", "a.yaml: there is no setting stepz; the nearest valid key is 'steps'"),
        ("optim: {lrr: 5}", "there is no setting optim.lrr; the nearest valid key is 'lr'"),
        ("optim: 5", "optim must be settings, such as .key: value., not '5'"),
        ("steps: many", "steps must be a whole number, not 'many'"),
        ("dtype: null", "dtype must be float32 or bfloat16 or auto, not empty"),
        ("dtype: float23", "'float23' is not one of float32, bfloat16, auto; the nearest is 'float32'"),
        ("steps: 5\nsteps: 6", "a.yaml, line 1 is not YAML: the key 'steps' comes twice"),
        ("steps: [5", r"a.yaml, line \d is not YAML"),
        ("steps: !!python/object:os.system 5", "a.yaml, line 1 is not YAML"),
        ("- steps", "a.yaml has no settings"),
        ("", "a.yaml has no settings"),
        ("rules: &r [*r]", r"rules\[0\] must be settings|nested too deep"),
        ("steps: &a [*b]", "a.yaml, line 1 is not YAML: found undefined alias"),
        ("\x00", "a.yaml is not YAML"),
    ],
)
def test_each_error_of_a_file_is_one_line_that_names_it_and_exit_code_1(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(TrainConfigError, match=message):
        read_config([str(path)])
    with pytest.raises(SystemExit, match="1"):
        main(["train", str(path)])
    assert_one_line_an_error(capsys.readouterr().err)


def assert_one_line_an_error(said: str) -> None:
    """A single error is a line; several are counted and numbered."""
    first, *numbered = said.splitlines()
    assert not numbered or first == f"owl2 train: {len(numbered)} errors:"
    assert all(line.startswith(f"  {number}. ") for number, line in enumerate(numbered, start=1))


@pytest.mark.parametrize("command", [["train"], ["plan", "--gpus", "1"]])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--stepz=5", "no option '--stepz'; the nearest is '--steps'"),
        ("--optim.lrr=5", "the nearest is '--optim.lr'"),
        ("--steps=many", "--steps must be a whole number, not 'many'"),
        (
            "--dtype=float23",
            "--dtype: 'float23' is not one of float32, bfloat16, auto; the nearest is 'float32'",
        ),
        ("--optim=5", "--optim must be settings"),
        ("--data.sources=[{path: a}]", "missing: --data.sources[0].name"),
        ("--rules=[{match: a, frozn: yes}]", "the nearest valid key is 'frozen'"),
        ("--steps=null", "--steps must be a whole number, not 'null'"),
    ],
)
def test_a_wrong_setting_on_the_command_line_is_one_line_and_exit_code_2(
    command: list[str], option: str, message: str, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command, stage, option])
    error = capsys.readouterr().err
    assert error.startswith(f"owl2 {command[0]}: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_printed_configuration_is_read_back_as_the_same(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", stage, "--data.template", "null", "--parallel.compile=1e3", "--print-config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = read_config([str(tmp_path / "printed.yaml")])
    assert (config.data.template, config.parallel.compile) == ("null", "1e3")
    assert config == read_config([stage, "--data.template", "null", "--parallel.compile=1e3"])

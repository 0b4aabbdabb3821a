"""Adapters: who gets one, what learns, and that merged, saved and resumed ones are the trained ones."""

import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

import owl2
from owl2.checkpoint import CheckpointError, load_model
from owl2.cli.train import read_config
from owl2.model import Owl2Model, build
from owl2.train import loop
from owl2.train.adapters.lora import (
    add_adapters,
    check_rules,
    is_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    summary,
    target_layers,
)
from owl2.train.config import LoraConfig, OptimConfig, ParallelConfig, TrainConfig, TrainConfigError
from owl2.train.metrics import read_metrics
from owl2.train.rules import Rule, RuleError, apply_freeze, assign_rules
from owl2.train.state.state import saved_states
from tests.model.tiny import lively, pad, random_samples, tiny_model
from tests.train import splits
from tests.train.ranks import Pool, all_returned
from tests.train.tiny import losses, quiet, run_until, run_whole, stage, weights

peft = pytest.importorskip("peft")

RULES = [
    Rule(match="*.lora_*"),
    Rule(match="model.visual_abstractor.*", lr=0.2),
    Rule(match="*", frozen=True),
]
LORA = LoraConfig(rank=4, alpha=8)
OPTIM = OptimConfig(lr=1e-2, warmup_steps=2)


@pytest.fixture(scope="module")
def trained(checkpoint: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run with adapters; read it only."""
    config = adapted(tmp_path_factory.mktemp("lora") / "whole", checkpoint, corpora)
    run_whole(config)
    return config


def adapted(run: Path, checkpoint: Path, corpora: Path, **changes: object) -> TrainConfig:
    return stage(run, checkpoint, corpora, **{"rules": RULES, "lora": LORA, "optim": OPTIM, **changes})


def with_random_adapters(config: LoraConfig = LORA) -> Owl2Model:
    """A tiny model whose adapters are far from zero."""
    model = tiny_model()
    add_adapters(model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model


@torch.no_grad()
def logits(model: Owl2Model) -> Tensor:
    """Logits of a batch with images and of one without."""
    mixed = pad(random_samples("3 I 5", "7", "I 2 I 4"))
    text = pad(random_samples("6", "9"))
    batches = [model(b.input_ids, b.attention_mask, b.pixel_values) for b in (mixed, text)]
    return torch.cat([batch.flatten() for batch in batches])


def learnt(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


# -- where adapters go -----------------------------------------------------------------------------------


def test_a_pattern_reaches_both_branches_of_mam_or_one_that_it_names() -> None:
    model = build("tiny", device="meta")
    keys = [f"model.layers.{i}.self_attn.k_proj.multiway.{way}" for i in (0, 1) for way in (0, 1)]
    assert target_layers(model, ["*.k_proj"]) == keys
    assert target_layers(model, ["*.k_proj.multiway.1"]) == keys[1::2]
    assert target_layers(model, ["model.layers.1.*", "*.k_proj"])[:2] == keys[:2]
    everything = target_layers(model, ["model.layers.*"])
    assert len(everything) == 2 * (2 + 2 * 2 + 3)
    assert all(name.startswith("model.layers.") for name in everything)


def test_the_vision_encoder_is_reached_only_by_a_pattern_that_names_it() -> None:
    model = build("tiny", device="meta")
    for pattern in ("*", "*.fc1", "*mlp*"):
        with pytest.raises(TrainConfigError, match=r"reaches \d+ layers of the vision encoder, as model.vis"):
            target_layers(model, ["model.layers.*", pattern])
    meant = target_layers(model, ["model.vision_model.*.mlp.fc1"])
    assert meant == [f"model.vision_model.encoder.layers.{i}.mlp.fc1" for i in range(2)]


def test_a_pattern_without_layers_and_one_that_reaches_the_head_are_errors() -> None:
    model = build("tiny", device="meta")
    with pytest.raises(TrainConfigError, match=r"'\*.kproj' matches none .* nearest names: .*k_proj"):
        target_layers(model, ["*.kproj"])
    with pytest.raises(TrainConfigError, match="reaches lm_head"):
        target_layers(model, ["lm_head"])


def test_adapters_change_nothing_at_first_and_their_draw_is_that_of_their_seed() -> None:
    model = tiny_model()
    before = logits(model)
    add_adapters(model, LORA)
    assert torch.equal(logits(model), before)
    start = {name: p for name, p in model.named_parameters() if ".lora_A." in name}
    for seed, same in ((0, True), (1, False)):
        other = lively(build("tiny"))
        add_adapters(other, dataclasses.replace(LORA, seed=seed))
        assert all(torch.equal(other.get_parameter(name), p) == same for name, p in start.items())


# -- what learns -----------------------------------------------------------------------------------------


def test_the_shipped_stage_trains_less_than_five_percent_of_the_released_model() -> None:
    config = read_config(["lora"])
    config.check()
    assert config.lora is not None
    model = build("owl2_7b", device="meta")
    add_adapters(model, config.lora)
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    check_rules(assignments)
    apply_freeze(model, assignments)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("model.vision_model.") for name in learns)
    assert sum(".lora_A." in name for name in learns) == 32 * (2 + 2 * 2 + 3)
    assert sum(".multiway.1.lora_" in name for name in learns) == 32 * 2 * 2
    assert all(is_adapter(name) or name.startswith("model.visual_abstractor.") for name in learns)
    assert {a.lr for a in assignments if a.name.startswith("model.visual_abstractor.")} == {0.2}
    share = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share /= sum(p.numel() for p in model.parameters())
    assert share < 0.05
    assert f"({share:.2%})" in summary(model)
    assert "in the adapters of 288 layers" in summary(model)


def test_a_table_that_trains_what_has_an_adapter_or_freezes_an_adapter_is_an_error() -> None:
    model = build("tiny", device="meta")
    add_adapters(model, LORA)
    with pytest.raises(RuleError, match=r"rule '\*' trains .*q_proj.base_layer.weight, which"):
        check_rules(assign_rules(model, [Rule(match="*")], 0.0))
    rules = [Rule(match="*.lora_B.*"), Rule(match="*", frozen=True)]
    with pytest.raises(RuleError, match=r"rule '\*' freezes .*lora_A.default.weight"):
        check_rules(assign_rules(model, rules, 0.0))


def test_a_run_moves_adapters_of_both_branches_and_leaves_the_decoder_and_the_vision_encoder_bit_for_bit(
    trained: TrainConfig, checkpoint: Path
) -> None:
    rows = read_metrics(trained.run)
    assert rows[-1]["loss"] < rows[0]["loss"]
    adapters = learnt(trained.run / "adapter")
    moved = {name for name, tensor in adapters.items() if ".lora_B." in name and tensor.abs().max() > 1e-4}
    assert len(moved) == len(adapters) / 2 == 18
    before, after = weights(checkpoint), weights(trained.run / "checkpoint")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = {f"{name}.weight" for name in target_layers(build("tiny", device="meta"), ["model.layers.*"])}
    assert targets <= changed
    assert all(name.startswith("model.visual_abstractor.") for name in changed - targets)


def test_the_number_of_trainable_parameters_is_printed(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    output = io.StringIO()
    config = adapted(tmp_path, checkpoint, corpora, steps=1, optim=OptimConfig(warmup_steps=0))
    loop.train(config, Console(file=output, width=200))
    assert re.search(
        r"LoRA: [\d,]+ of [\d,]+ parameters are trainable \(\d+\.\d+%\), .* 18 layers", output.getvalue()
    )
    assert "*.lora_*" in output.getvalue()


def test_the_memory_benchmark_counts_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.lora import STAGES, measure, show

    results = {stage: measure(stage, width=128, layers=1, rank=2, steps=1) for stage in STAGES}
    show({"small": results})
    full, lora = results.values()
    assert full["sum"] == 4 * full["weights"]
    assert lora["gradients"] < 0.1 * full["gradients"]
    assert "LoRA / full" in capsys.readouterr().out


# -- merged, saved, resumed ------------------------------------------------------------------------------


def test_merged_adapters_give_the_logits_of_adapters_at_run_time() -> None:
    model = with_random_adapters()
    names = set(tiny_model().state_dict())
    expected, plain = logits(model), logits(tiny_model())
    assert (expected - plain).abs().max() > 0.1
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == names


def test_the_exported_checkpoint_is_the_base_with_the_saved_adapter(
    trained: TrainConfig, checkpoint: Path
) -> None:
    merged = logits(load_model(trained.run / "checkpoint", progress=False))
    model = load_model(checkpoint, progress=False)
    assert (logits(model) - merged).abs().max() > 1e-2
    load_adapter(model, trained.run / "adapter")
    torch.testing.assert_close(logits(model), merged, rtol=1e-5, atol=1e-5)


def test_an_adapter_folder_loads_as_a_model_with_the_checkpoint_that_it_names(
    trained: TrainConfig, tmp_path: Path
) -> None:
    """`owl2.load` and `owl2 chat` take RUN/adapter; a checkpoint that has moved is named."""
    adapter = trained.run / "adapter"
    merged = load_model(trained.run / "checkpoint", progress=False)
    torch.testing.assert_close(logits(owl2.load(adapter).model), logits(merged), rtol=1e-5, atol=1e-5)
    moved = shutil.copytree(adapter, tmp_path / "moved")
    settings = json.loads((moved / "adapter_config.json").read_text())
    for base in (None, str(tmp_path / "gone")):
        text = json.dumps({**settings, "base_model_name_or_path": base})
        (moved / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=rf"Set base_model_name_or_path in .*{base!r}"):
            owl2.load(moved)


def test_peft_reads_the_saved_adapter(tmp_path: Path) -> None:
    model = with_random_adapters()
    save_adapter(model, tmp_path / "adapter", LORA, base=Path("base"))
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "owl2_adapter.json",
    ]
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8)
    assert settings["base_model_name_or_path"] == "base"
    theirs = peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"))
    assert torch.equal(logits(theirs.get_base_model()), logits(model))


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    save_adapter(with_random_adapters(), tmp_path / "adapter", LORA, base=Path("base"))
    wider = build(dataclasses.replace(tiny_model().config, decoder=wider_decoder()))
    with pytest.raises(CheckpointError, match="of another shape"):
        load_adapter(wider, tmp_path / "adapter")
    assert not any(is_adapter(name) for name, _ in wider.named_parameters())
    with pytest.raises(CheckpointError, match="has no adapters"):
        load_adapter(tiny_model(), tmp_path)


def test_half_an_adapter_is_refused_with_what_is_missing(
    trained: TrainConfig, checkpoint: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(trained.run / "adapter", tmp_path / "half")
    (half / "other_weights.safetensors").unlink()
    model = load_model(checkpoint, progress=False)
    with pytest.raises(
        CheckpointError, match=r"half is not the whole adapter: other_weights.safetensors is mis"
    ):
        load_adapter(model, half)
    assert not any(is_adapter(name) for name, _ in model.named_parameters())


def test_a_file_of_another_adapter_and_a_cut_one_are_refused(
    trained: TrainConfig, checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("adapter_model.safetensors", "other_weights.safetensors"):
        mixed = shutil.copytree(trained.run / "adapter", tmp_path / f"mixed-{name}")
        tensors = load_file(mixed / name)
        save_file({key: tensor + 1 for key, tensor in tensors.items()}, mixed / name)
        with pytest.raises(
            CheckpointError, match=rf"{name} is not the file that was saved with this adapter"
        ):
            load_adapter(load_model(checkpoint, progress=False), mixed)
        cut = shutil.copytree(trained.run / "adapter", tmp_path / f"cut-{name}")
        (cut / name).write_bytes((cut / name).read_bytes()[:-10])
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read .*copy the adapter folder again"):
            load_adapter(load_model(checkpoint, progress=False), cut)


def test_another_checkpoint_of_the_same_shapes_is_refused_with_the_parameters_that_differ(
    trained: TrainConfig, checkpoint: Path
) -> None:
    model = load_model(checkpoint, progress=False)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 0.1
        model.get_parameter("model.visual_abstractor.vit_eos").add_(1)  # the adapter has its own
    message = r"another checkpoint: 1 of \d+ frozen parameters .*\(model.layers.1.mlp.up_proj.weight\)"
    with pytest.raises(CheckpointError, match=message):
        load_adapter(model, trained.run / "adapter")


def test_an_adapter_fits_its_checkpoint_in_bfloat16_too_and_is_loaded_once(
    trained: TrainConfig, checkpoint: Path
) -> None:
    model = load_model(checkpoint, dtype=torch.bfloat16, progress=False)
    load_adapter(model, trained.run / "adapter")
    with pytest.raises(CheckpointError, match="has adapters already"):
        load_adapter(model, trained.run / "adapter")


def test_an_adapter_of_an_earlier_version_is_loaded_with_a_warning(
    trained: TrainConfig, checkpoint: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(trained.run / "adapter", tmp_path / "old")
    (old / "owl2_adapter.json").unlink()
    model = load_model(checkpoint, progress=False)
    with pytest.warns(UserWarning, match=r"old has no owl2_adapter.json .*not checked"):
        load_adapter(model, old)
    merged = logits(load_model(trained.run / "checkpoint", progress=False))
    torch.testing.assert_close(logits(model), merged, rtol=1e-5, atol=1e-5)


def wider_decoder() -> object:
    return dataclasses.replace(tiny_model().config.decoder, intermediate_size=256)


def test_a_stopped_run_goes_on_with_the_losses_of_the_uninterrupted_one(
    trained: TrainConfig, checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adapted(tmp_path, checkpoint, corpora)
    run_until(config, 3, monkeypatch)
    assert saved_states(config.run)
    loop.train(config, quiet())
    assert losses(config.run) == losses(trained.run)
    ours, whole = learnt(config.run / "adapter"), learnt(trained.run / "adapter")
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())


def test_two_ranks_have_the_adapters_of_one_and_a_process_group_of_one_trains_them_in_bfloat16(
    checkpoint: Path, corpora: Path, pool: Pool, tmp_path: Path
) -> None:
    """The latter is what a single GPU does."""
    batch = {"optim": splits.OPTIM, "steps": 5, "micro_batch_size": 4, "accumulation": 1}
    whole = adapted(tmp_path / "whole", checkpoint, corpora, **batch)
    run_whole(whole)
    config = splits.split(whole, tmp_path / "two", 2)
    all_returned(pool.run(2, splits.train_on_rank, config))
    splits.assert_equal_runs(config, whole)
    ours, theirs = learnt(config.run / "adapter"), learnt(whole.run / "adapter")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    contents = [
        json.loads((run / "adapter/owl2_adapter.json").read_text()) for run in (config.run, whole.run)
    ]
    assert contents[0]["base"] == contents[1]["base"]
    half = dataclasses.replace(splits.split(whole, tmp_path / "half", 1), dtype="bfloat16", steps=2)
    all_returned(pool.run(1, splits.train_on_rank, half))
    assert losses(half.run) == pytest.approx(losses(whole.run)[:2], rel=0.02)
    assert {tensor.dtype for tensor in learnt(half.run / "adapter").values()} == {torch.bfloat16}


def test_other_adapters_in_the_middle_of_a_run_are_refused(
    trained: TrainConfig, checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adapted(tmp_path, checkpoint, corpora)
    run_until(config, 1, monkeypatch)
    changed = dataclasses.replace(config, lora=dataclasses.replace(LORA, alpha=16))
    with pytest.raises(TrainConfigError, match=r"lora.alpha: 8 -> 16"):
        loop.train(changed, quiet())


def test_without_peft_a_run_says_what_to_install_before_it_loads_anything(
    trained: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainConfigError, match=r"pip install 'owl2\[lora\]'"):
        run_whole(dataclasses.replace(trained, run=tmp_path, model=tmp_path / "not there"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig(rank=0)}, "lora.rank = 0 must be 1 or more"),
        ({"lora": LORA, "image_size": 112}, "image_size and copy_text_to_vision change the checkpoint"),
        ({"lora": LORA, "parallel": ParallelConfig(tensor=2)}, "use parallel.tensor 1"),
    ],
)
def test_settings_that_adapters_contradict_are_refused_before_any_work(
    trained: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainConfigError, match=message):
        dataclasses.replace(trained, **changes).check(2 if "parallel" in changes else 1)

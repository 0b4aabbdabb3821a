"""Matrices of four bits: the layer's arithmetic, and that runs, resumes, merges and plans hold with them.

`bitsandbytes` has kernels for the CPU, so nothing here is imitated.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from owl2.checkpoint import load_model
from owl2.cli.train import read_config
from owl2.model import Owl2Model, build, preset
from owl2.train import loop
from owl2.train.adapters.lora import add_adapters, load_adapter, merge_adapters, summary, target_layers
from owl2.train.adapters.qlora import FourBitLinear, coded_layers
from owl2.train.config import LoraConfig, TrainConfigError
from owl2.train.plan.inputs import Averages
from owl2.train.plan.plan import GPUS, USABLE, DoesNotFit, Gpu, plan_exactly, plan_stage
from owl2.train.state.state import StateError
from tests.model.tiny import tiny_model
from tests.train import splits
from tests.train.ranks import Pool, Raised, all_returned
from tests.train.test_lora import adapted, learnt, logits, with_random_adapters
from tests.train.tiny import losses, quiet, run_until, run_whole, weights

pytest.importorskip("peft")
bnb = pytest.importorskip("bitsandbytes.functional")

NF4 = LoraConfig(rank=4, alpha=8, base_dtype="nf4")


def bases(model: Owl2Model) -> dict[str, FourBitLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, FourBitLinear)}


def test_the_layer_multiplies_by_the_matrix_that_its_codes_stand_for() -> None:
    linear = nn.Linear(96, 130)
    layer = FourBitLinear(linear)
    x = torch.randn(5, 96, requires_grad=True)
    expected = bnb.dequantize_4bit(layer.codes, layer.scales)
    torch.testing.assert_close(layer(x), x @ expected.T + linear.bias, rtol=0, atol=1e-6)
    error = (expected - linear.weight).norm() / linear.weight.norm()
    assert 0.05 < error < 0.12, "of NF4 for a uniform matrix"
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, expected.sum(0).expand(5, -1), rtol=0, atol=1e-5)
    assert layer(x.bfloat16()).dtype == torch.float32  # the bias's
    assert torch.equal(layer.restored().weight, expected)


def test_codes_take_what_is_counted_for_them() -> None:
    layer = FourBitLinear(nn.Linear(512, 640, bias=False))
    nested = layer.scales.state2
    held = layer.codes.nbytes + layer.scales.absmax.nbytes + nested.absmax.nbytes
    assert layer.nbytes == held
    assert layer.nbytes < 0.13 * 4 * layer.num_weights
    assert list(layer.parameters()) == list(layer.buffers()) == []
    planned = FourBitLinear(nn.Linear(512, 640, bias=False, device="meta"))
    assert planned.nbytes == held


def test_every_matrix_with_an_adapter_has_codes_and_no_other() -> None:
    model = tiny_model()
    add_adapters(model, NF4)
    targets = target_layers(tiny_model(), NF4.targets)
    assert [name.removesuffix(".base_layer") for name in bases(model)] == targets
    assert sum(".multiway.1." in name for name in bases(model)) == 2 * 2
    assert not coded_layers(model.model.vision_model)
    whole = tiny_model()
    total = sum(p.numel() for p in whole.parameters())
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert f"of {total + adapters:,} parameters" in summary(model)
    assert "frozen ones have four bits" in summary(model)


def test_merged_adapters_give_the_logits_of_adapters_on_four_bits() -> None:
    model = with_random_adapters(NF4)
    names = set(tiny_model().state_dict())
    expected = logits(model)
    assert (expected - logits(with_random_adapters())).abs().max() > 1e-2, "four bits are not thirty-two"
    merge_adapters(model)
    assert not coded_layers(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert set(model.state_dict()) == names


def test_a_run_learns_resumes_and_leaves_an_ordinary_checkpoint(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adapted(tmp_path / "whole", checkpoint, corpora, lora=NF4, steps=5)
    run_whole(whole)
    assert losses(whole.run)[-1] < losses(whole.run)[0]
    config = dataclasses.replace(whole, run=tmp_path / "stopped")
    run_until(config, 3, monkeypatch)
    loop.train(config, quiet())
    assert losses(config.run) == losses(whole.run)
    ours, theirs = learnt(config.run / "adapter"), learnt(whole.run / "adapter")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    before, after = weights(checkpoint), weights(whole.run / "checkpoint")
    assert before.keys() == after.keys()
    vision = [name for name in before if name.startswith("model.vision_model.")]
    assert all(torch.equal(before[name], after[name]) for name in vision)
    assert torch.isfinite(logits(load_model(whole.run / "checkpoint", progress=False))).all()
    load_adapter(load_model(checkpoint, progress=False), whole.run / "adapter")  # it is of this checkpoint


def test_two_ranks_have_the_losses_of_one(
    checkpoint: Path, corpora: Path, pool: Pool, tmp_path: Path
) -> None:
    batch = {"optim": splits.OPTIM, "steps": 5, "micro_batch_size": 4, "accumulation": 1}
    whole = adapted(tmp_path / "whole", checkpoint, corpora, lora=NF4, **batch)
    run_whole(whole)
    config = splits.split(whole, tmp_path / "two", 2)
    all_returned(pool.run(2, splits.train_on_rank, config))
    splits.assert_equal_runs(config, whole)


def test_a_run_resumes_with_no_other_matrices_than_it_began_with_on_any_number_of_ranks(
    checkpoint: Path, corpora: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(checkpoint, base)
    batch = {"optim": splits.OPTIM, "steps": 5, "micro_batch_size": 4, "accumulation": 1}
    whole = adapted(tmp_path / "whole", checkpoint, corpora, lora=NF4, **batch)
    run_whole(whole)
    config = dataclasses.replace(whole, run=tmp_path / "run", model=base)
    run_until(config, 2, monkeypatch)
    name = "model.layers.1.mlp.up_proj"
    tensors = load_file(base / "model.safetensors")
    tensors[f"{name}.weight"][2, 3] += 1e-6  # too little for another code
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    two = splits.split(config, config.run, 2)
    refused = rf"frozen weights: 1 of \d+ .*\({name}\.base_layer\.weight\).* restore the"
    with pytest.raises(StateError, match=refused):
        run_whole(config)
    with pytest.raises(Raised, match=refused):
        all_returned(pool.run(2, splits.train_on_rank, two))
    shutil.copy(checkpoint / "model.safetensors", base / "model.safetensors")
    all_returned(pool.run(2, splits.train_on_rank, two))
    splits.assert_equal_runs(two, whole)


def test_a_plan_has_a_seventh_of_the_bytes_of_coded_matrices() -> None:
    config = read_config(["lora"])
    config = dataclasses.replace(config, dtype="float32", micro_batch_size=4, accumulation=32)
    assert config.lora is not None
    coded = dataclasses.replace(config, lora=dataclasses.replace(config.lora, base_dtype="nf4"))
    model, averages = preset("tiny"), Averages(tokens=512, images=1)
    full, small = (plan_exactly(c, model, 1, GPUS["4090"], averages) for c in (config, coded))
    whole = build(model, device="meta")
    targets = set(target_layers(whole, config.lora.targets))
    matrices = [m for name, m in whole.named_modules() if name in targets and isinstance(m, nn.Linear)]
    saved = sum(4 * matrix.weight.numel() - FourBitLinear(matrix).nbytes for matrix in matrices)
    assert full.trace.parameters - small.trace.parameters == saved
    assert (full.num_parameters, full.num_trainable) == (small.num_parameters, small.num_trainable)
    assert full.flops == small.flops
    assert full.trace.gradients == small.trace.gradients


def test_a_stage_with_adapters_that_does_not_fit_is_told_of_four_bits() -> None:
    config = read_config(["lora"])
    config = dataclasses.replace(config, global_batch_size=1, micro_batch_size=1, accumulation=1)
    assert config.lora is not None
    coded = dataclasses.replace(config, lora=dataclasses.replace(config.lora, base_dtype="nf4"))
    model, averages = preset("tiny"), Averages(tokens=512, images=1)
    peaks = [plan_exactly(c, model, 1, GPUS["4090"], averages).trace.peak for c in (config, coded)]
    between = Gpu("between", memory=int(sum(peaks) / 2 / USABLE), peak=1e12)
    with pytest.raises(DoesNotFit, match=r"What fits: .* --lora.base_dtype nf4"):
        plan_stage(config, model, 1, between, averages)


def test_without_bitsandbytes_a_run_says_what_to_install_before_it_loads_anything(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    config = adapted(tmp_path / "run", tmp_path / "not there", corpora, lora=NF4)
    with pytest.raises(TrainConfigError, match=r"pip install 'owl2\[qlora\]'"):
        run_whole(config)

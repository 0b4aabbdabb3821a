"""What `owl2 plan` says is what ranks measure, and what it refuses comes with what would fit.

Real ranks are measured from outside: the sizes of what they hold, and the profiler's record of what the
allocator gave and took during a micro-batch.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl2.__main__ import main as program
from owl2.checkpoint import load_model
from owl2.cli.train import read_config
from owl2.model import Owl2Config, preset
from owl2.train.config import EmaConfig, ParallelConfig, TrainConfig
from owl2.train.ema import MovingAverage
from owl2.train.optim import make_optimizer
from owl2.train.parallel import local_part, set_last_micro_batch
from owl2.train.plan.inputs import Averages, longest_micro_batch
from owl2.train.plan.plan import GPUS, USABLE, DoesNotFit, Gpu, find_model, plan_exactly, plan_stage
from owl2.train.plan.tracer import full_batch, without_storage
from owl2.train.prepare import load_stage
from owl2.train.ranks import Ranks, start_ranks
from owl2.train.rules import Rule, apply_freeze, assign_rules
from owl2.train.state.saver import Saver
from owl2.train.state.state import tensors_of
from tests.train.ranks import TIMEOUT_S, Pool, all_returned
from tests.train.tiny import quiet, stage

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "owl2/configs").glob("*.yaml"))
AVERAGES = Averages(tokens=512, images=1)


def main(words: list[str]) -> None:
    program(["plan", *words])


MEASURED = ("parameters", "gradients", "optimizer", "average", "peak", "saved")


def measure_on_rank(rank: int, config: TrainConfig) -> dict[str, int]:
    """Bytes that a real rank holds, and the most in the last of two micro-batches of its second step."""
    torch.set_num_threads(1)
    with start_ranks("cpu", config.parallel.tensor, TIMEOUT_S, alone=False) as ranks:
        objective, _ = load_stage(config, ranks)
        model = objective.model
        assignments = assign_rules(model, config.rules, config.optim.weight_decay)
        apply_freeze(model, assignments)
        optimizer = make_optimizer(model, assignments, config.optim)
        averages = MovingAverage(model, config.ema.decay).state if config.ema is not None else {}
        batch = full_batch(model.config, longest_micro_batch(config, model.config, AVERAGES))
        batch = dataclasses.replace(batch, pixel_values=torch.zeros(batch.pixel_values.shape))

        def compute(is_last: bool) -> None:
            set_last_micro_batch(objective, is_last)
            objective(batch).sum().backward()

        compute(True)
        optimizer.step()
        optimizer.zero_grad()
        compute(False)
        state = [value for group in optimizer.state.values() for value in group.values()]
        inputs = [batch.input_ids, batch.pixel_values, *vars(batch.targets).values()]
        inputs += [value for value in vars(batch.layout).values() if isinstance(value, Tensor)]
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            compute(True)
        held = {
            "parameters": num_bytes(model.parameters()),
            "gradients": num_bytes(p.grad for p in model.parameters() if p.grad is not None),
            "optimizer": num_bytes(state),
            "average": num_bytes(averages.values()),
        }  # gradients were there before as well, for copies of the model in a buffer of FSDP
        before = sum(held.values()) + num_bytes(model.buffers()) + num_bytes(inputs)
        saved = copied_for_a_save(config, ranks, tensors_of(model, optimizer, averages))
        return {**held, "peak": before + highest(profile), "saved": saved}


def copied_for_a_save(config: TrainConfig, ranks: Ranks, tensors: dict[str, Tensor]) -> int:
    """Bytes of the memory that a save beside the training needs for its copy."""
    saver = Saver(config, ranks, quiet())
    copy = saver.stager.stage(tensors)
    assert isinstance(copy, dict)
    storages = [local_part(tensor).untyped_storage() for tensor in copy.values()]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    saver.stager.close()
    return sum(sizes.values())


def highest(profile: Any) -> int:
    """The highest sum of allocations less releases, from the beginning of a profile."""
    events = sorted(profile.kineto_results.events(), key=lambda event: event.start_ns())
    level = top = 0
    for event in events:
        if event.name() == "[memory]":
            level += event.nbytes()
            top = max(top, level)
    return top


def num_bytes(tensors: Any) -> int:
    return sum(local_part(tensor).nbytes for tensor in tensors)


ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "DP2": {},
    "TP2": {"parallel": ParallelConfig(tensor=2)},
    "two copies": {"parallel": ParallelConfig(replicate=2)},
    "layers computed again": {"parallel": ParallelConfig(activation_checkpointing="full")},
    "an average": {"ema": EmaConfig(decay=0.9)},
    "packs": {"pack_tokens": 1200, "micro_batch_size": 1, "accumulation": 1},
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_plan_has_the_memory_that_two_ranks_measure(
    name: str, checkpoint: Path, corpora: Path, pool: Pool, tmp_path: Path
) -> None:
    changes = {"micro_batch_size": 2, "accumulation": 2, **ARRANGEMENTS[name]}
    pack_tokens = changes.pop("pack_tokens", None)
    config = stage(tmp_path, checkpoint, corpora, **changes)
    data = dataclasses.replace(config.data, pack_tokens=pack_tokens)
    config = dataclasses.replace(config, global_batch_size=4 * config.parallel.data_ranks(2), data=data)
    measured = all_returned(pool.run(2, measure_on_rank, config))[0]
    plan = plan_exactly(config, load_model(checkpoint, progress=False).config, 2, GPUS["h100"], AVERAGES)
    for what in MEASURED:
        assert getattr(plan.trace, what) == pytest.approx(measured[what], rel=0.02), what


def tiny_stage(name: str, **changes: Any) -> tuple[TrainConfig, Owl2Config]:
    """A shipped stage with the tiny model."""
    config = read_config([name, "--model", "tiny"])
    config = dataclasses.replace(config, **changes)
    return config, find_model(config)[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_stage_is_planned_for_64_ranks_or_as_many_as_its_batch_has_samples(path: Path) -> None:
    config, model = tiny_stage(path.stem)
    num_gpus = min(64, config.global_batch_size)
    plan = plan_stage(config, model, num_gpus, GPUS["h100"])
    assert plan.fits
    planned = plan.config
    assert planned.optim == config.optim
    ranks = planned.parallel.data_ranks(num_gpus)
    assert planned.micro_batch_size * planned.accumulation * ranks == config.global_batch_size
    planned.check(num_gpus)


DEEP = preset("tiny").replace(
    **{
        part: dataclasses.replace(getattr(preset("tiny"), part), num_hidden_layers=depth)
        for part, depth in (("vision", 6), ("abstractor", 5), ("decoder", 7))
    }
)
FROZEN_BELOW = [Rule(match="model.layers.6.*"), Rule(match="*", frozen=True)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="sharded"),
        pytest.param({"rules": FROZEN_BELOW}, id="only the last layer learns"),
        pytest.param(
            {"parallel": ParallelConfig(tensor=2, activation_checkpointing="full")},
            id="split, computed again",
        ),
    ],
)
def test_the_layers_that_stand_for_others_give_the_trace_of_all(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"rules": [Rule(match="*")], "parallel": ParallelConfig(), **changes}
    config, _ = tiny_stage("instruct", image_size=None, micro_batch_size=2, accumulation=2, **changes)
    batch = 4 * config.parallel.data_ranks(4)
    config = dataclasses.replace(config, global_batch_size=batch, device="cuda")
    few = plan_exactly(config, DEEP, 4, GPUS["h100"], AVERAGES).trace
    monkeypatch.setattr("owl2.train.plan.plan.shorten", lambda model: {})
    every = plan_exactly(config, DEEP, 4, GPUS["h100"], AVERAGES).trace
    assert few.peak == pytest.approx(every.peak, rel=2e-3)
    assert dataclasses.replace(few, peak=every.peak) == every


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instruct", "pretrain", "lora", "qlora"])
def test_the_paper_is_planned_for_64_gpus_in_half_a_minute_and_4_gb(name: str) -> None:
    code = (
        "import resource, sys, json; from owl2.__main__ import main; main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        "print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))"
    )
    words = ["plan", name, "--gpus", "64"]
    words += ["--tp", "2"] if name in ("instruct", "pretrain") else []
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    assert memory < 4e9
    assert seconds < 30, "of processor time; half of it where nothing else runs"
    assert "preset owl2_7b, as runs/" in done.stdout


def test_gradients_and_parameters_travel_as_often_as_their_sizes_say() -> None:
    """Every gradient is reduced once a micro-batch; every parameter that another rank has is gathered."""
    config, model = tiny_stage("pretrain", dtype="float32", micro_batch_size=1, accumulation=64)
    config = dataclasses.replace(config, global_batch_size=128, parallel=ParallelConfig())
    whole = without_storage(config, model)
    plan = plan_exactly(config, model, 2, GPUS["h100"], AVERAGES)
    assert plan.trace.reduced == bytes_on_other(p for p in whole.parameters() if p.requires_grad)
    assert bytes_on_other(whole.parameters()) < plan.trace.gathered < 2 * bytes_on_other(whole.parameters())
    assert plan.trace.tensor == plan.trace.copies == 0
    assert plan.received == 64 * (plan.trace.gathered + plan.trace.reduced)


def bytes_on_other(parameters: Iterable[Tensor]) -> int:
    """What the other of two ranks holds of float32 parameters, whose rows are filled up to an even number."""
    return sum(4 * math.ceil(len(p) / 2) * (p.numel() // len(p)) for p in parameters)


def test_frozen_parameters_have_neither_gradient_nor_moments() -> None:
    config, model = tiny_stage("pretrain", global_batch_size=128, dtype="float32")
    plan = plan_exactly(config, model, 1, GPUS["h100"], AVERAGES)
    assert plan.num_trainable < plan.num_parameters
    assert plan.trace.parameters == 4 * plan.num_parameters
    assert plan.trace.gradients == 4 * plan.num_trainable
    assert plan.trace.optimizer == pytest.approx(2 * plan.trace.gradients, rel=0.02)


def test_a_stage_that_does_not_fit_is_refused_with_what_does() -> None:
    changes: dict[str, Any] = {
        "image_size": None,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "accumulation": 1,
    }
    changes["parallel"] = ParallelConfig()
    config, model = tiny_stage("instruct", **changes)
    peak = plan_exactly(config, model, 2, GPUS["h100"], AVERAGES).trace.peak
    small = Gpu("small", memory=int(peak * 0.7), peak=1e12)
    with pytest.raises(DoesNotFit, match=r"micro_batch_size 4 .* What fits: --micro_batch_size 2") as refused:
        plan_stage(config, model, 2, small)
    assert "--accumulation 2 --parallel.tensor 1" in str(refused.value)


def test_a_stage_that_nothing_makes_fit_is_refused_with_the_least_that_it_needs() -> None:
    changes: dict[str, Any] = {
        "image_size": None,
        "global_batch_size": 2,
        "micro_batch_size": 1,
        "accumulation": 1,
    }
    changes["parallel"] = ParallelConfig()
    config, model = tiny_stage("instruct", **changes)
    with pytest.raises(DoesNotFit, match=r"Nothing tried fits: .*_checkpointing full; .* larger GPUs"):
        plan_stage(config, model, 2, Gpu("none", memory=1000, peak=1e12))


def test_a_batch_that_does_not_add_up_is_planned_with_micro_batches_that_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stage = ["instruct", "--gpus", "64", "--tp", "2", "--model", "tiny"]
    main([*stage, "--mfu", "0.5", "--micro_batch_size", "16", "--accumulation", "16"])
    printed = capsys.readouterr().out
    assert "micro_batch_size 16 x accumulation 16 x 32 ranks = 8192, but global_batch_size is 256" in printed
    assert "--micro_batch_size 8 --accumulation 1 --parallel.tensor 2" in printed
    main(["instruct", "--gpus", "64", "--model", "tiny"])
    assert "but global_batch_size" not in capsys.readouterr().out, "it is made for 64 GPUs"
    assert "4,800 steps" in printed
    assert "preset tiny" in printed


PACKED = ["--model", "tiny", "--data.pack_tokens", "4096", "--micro_batch_size", "1", "--accumulation", "1"]


def test_a_stage_in_packs_is_planned_for_full_packs_and_says_what_it_assumes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["instruct", "--gpus", "16", "--tp", "2", *PACKED])
    printed = capsys.readouterr().out
    assert "--data.pack_tokens 4096 --micro_batch_size 1 --accumulation 1 --parallel.tensor 2" in printed
    assert "380 tokens (estimated for the mixture of Table 14" in printed
    assert "1 image(s) (assumed); packs are taken to be 97% full" in printed
    assert re.search(r"packs +│ +32 │ 4 a GPU, 74% full", printed), "3.06 a GPU, as many on every one"
    assert re.search(r"tokens +│ +97,280 ", printed)
    assert "host memory for a save: " in printed
    main(["instruct", "--gpus", "16", "--tokens", "1000", "--tp", "2", *PACKED])
    printed = capsys.readouterr().out
    assert "1000 tokens (given)" in printed
    assert re.search(r"packs +│ +72 │ 9 a GPU, 87% full", printed)


def test_a_full_pack_has_whole_samples_a_rest_and_the_images_of_average_samples() -> None:
    config, model = tiny_stage("instruct", micro_batch_size=1)
    packed = dataclasses.replace(config, data=dataclasses.replace(config.data, pack_tokens=4500))
    samples = longest_micro_batch(packed, model, Averages(tokens=450, images=0.55))
    assert [size.tokens for size in samples] == [2048, 2048, 404]
    assert sum(size.images for size in samples) == 6, "5.5 rounded up"
    samples = longest_micro_batch(packed, model, Averages(tokens=450, images=0.01))
    assert sum(size.images for size in samples) == 1


def test_packs_that_do_not_fit_are_refused_with_smaller_ones_that_hold_the_longest_sample() -> None:
    config, model = tiny_stage("instruct", image_size=None, micro_batch_size=1, parallel=ParallelConfig())

    def packed(tokens: int) -> TrainConfig:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, pack_tokens=tokens))

    for fits in (2500, 2048):
        peak = plan_exactly(packed(fits), model, 2, GPUS["h100"], AVERAGES).trace.peak
        gpu = Gpu("small", memory=math.ceil((peak + 1) / USABLE), peak=1e12)
        with pytest.raises(DoesNotFit, match=rf"pack_tokens 5000 .* What fits: --data.pack_tokens {fits} "):
            plan_stage(packed(5000), model, 2, gpu, AVERAGES)


def test_a_state_has_what_learns_its_moments_and_its_average(capsys: pytest.CaptureFixture[str]) -> None:
    config, model = tiny_stage("pretrain", global_batch_size=128, ema=EmaConfig(decay=0.9))
    plan = plan_exactly(config, model, 1, GPUS["h100"], AVERAGES)
    assert plan.trace.average == 4 * plan.num_trainable
    assert plan.trace.saved == pytest.approx(4 * 4 * plan.num_trainable, rel=0.01)
    without = plan_exactly(dataclasses.replace(config, ema=None), model, 1, GPUS["h100"], AVERAGES).trace
    assert plan.trace.peak - without.peak == plan.trace.average
    main(["tiny", "--gpus", "2", "--model", "tiny", "--save_in_background", "false"])
    assert re.search(r"for a save: .* a node of 2, while it is written", capsys.readouterr().out)


def test_a_stage_without_images_is_planned_and_one_without_tokens_is_no_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["tiny", "--gpus", "1", "--model", "tiny", "--images", "0"]
    main(words)
    assert "512 tokens (data.max_tokens), 0 image(s) (given)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--tokens", "0"])
    assert "--tokens 0.0 must be above 0" in capsys.readouterr().err


def test_time_follows_from_operations_peak_and_utilisation() -> None:
    config, model = tiny_stage("tiny")
    plan = plan_exactly(config, model, 1, GPUS["h100"], AVERAGES)
    assert plan.step_seconds(0.4) == pytest.approx(plan.flops / (989e12 * 0.4))
    assert plan.days(0.4) == pytest.approx(20 * plan.step_seconds(0.4) / 86400)
    shorter = plan_exactly(config, model, 1, GPUS["h100"], Averages(tokens=256, images=1))
    assert shorter.flops < plan.flops
    assert shorter.trace == plan.trace


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "8", "--gpu", "h1000"], "--gpu: 'h1000' is not one of b200, h200, h100"),
        (["--gpus", "8", "--stepz", "3"], "the nearest is '--steps'"),
        (["--gpus", "9", "--tp", "2"], "does not divide 9"),
        (
            ["--gpus", "64", "--model", "tiny", "--global_batch_size", "8"],
            "take --gpus 8 or --global_batch_size 64",
        ),
        (["--gpus", "8", "--data.pack_tokens", "4096"], "leave micro_batch_size 8 and accumulation 8 at 1"),
        (
            ["--gpus", "8", "--tokens", "4", "--images", "2", *PACKED],
            "samples of 4 tokens and 2 image(s) on average have no room for text",
        ),
        (
            ["--gpus", "8", "--objective", "bag_of_words", *PACKED],
            "one image a sample, so a full pack of 4096 tokens is not planned",
        ),
        (["--gpus", "8", "--tp", "8", "--model", "tiny"], "parallel.tensor 8 does not divide the 4"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tiny", *words])
    assert stop.value.code == (2 if "nearest is" in message or "is not one of" in message else 1)
    error = capsys.readouterr().err
    assert error.startswith("owl2 plan: ")
    assert message in error


def test_a_plan_is_json_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "tiny", "--gpus", "2", "--model", "tiny", "--accumulation", "4", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["stage"] == "tiny"
    assert found["memory"]["parameters"] == pytest.approx(4 * found["parameters"] / 2, rel=0.01)
    assert found["days"] == pytest.approx(found["steps"] * found["seconds_per_step"] / 86400)

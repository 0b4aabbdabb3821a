"""The learning rate as a function of the step, and settings that do not add up."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from PIL import Image

from owl2.data.sample import augment
from owl2.errors import Owl2Error
from owl2.processor import TemplateError
from owl2.train.config import (
    DataConfig,
    EmaConfig,
    LoraConfig,
    OptimConfig,
    ParallelConfig,
    Rule,
    SourceConfig,
    TrainConfig,
    TrainConfigError,
    ValidationConfig,
)
from owl2.train.loop import train
from owl2.train.optim import lr_at
from tests.train.tiny import quiet

STAGE_1 = OptimConfig()


def test_the_rate_warms_up_linearly_peaks_and_falls_as_a_cosine_to_its_floor() -> None:
    steps = 42_500
    assert lr_at(0, steps, STAGE_1) == pytest.approx(1e-7)
    assert lr_at(499, steps, STAGE_1) == pytest.approx(0.5e-4)
    assert lr_at(999, steps, STAGE_1) == 1e-4
    assert lr_at(1000, steps, STAGE_1) == 1e-4
    half = (1000 + steps - 1) / 2
    assert lr_at(int(half), steps, STAGE_1) == pytest.approx((1e-4 + 1e-6) / 2, rel=1e-3)
    quarter = 1e-6 + (1e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi / 4))
    assert lr_at(1000 + (steps - 1001) // 4, steps, STAGE_1) == pytest.approx(quarter, rel=1e-3)
    assert lr_at(steps - 1, steps, STAGE_1) == 1e-6
    rates = [lr_at(step, steps, STAGE_1) for step in range(1000, steps, 100)]
    assert rates == sorted(rates, reverse=True)


def test_without_warm_up_the_first_step_has_the_peak_and_one_step_is_enough() -> None:
    config = dataclasses.replace(STAGE_1, warmup_steps=0)
    assert lr_at(0, 10, config) == 1e-4
    assert lr_at(9, 10, config) == 1e-6
    assert lr_at(0, 1, config) == 1e-4


def config(**changes: Any) -> TrainConfig:
    source = SourceConfig(name="a", path=Path("a.jsonl"))
    base = TrainConfig(
        run=Path("run"),
        model=Path("model"),
        data=DataConfig(sources=[source]),
        rules=[Rule(match="*")],
        steps=2000,
        micro_batch_size=16,
        accumulation=16,
    )
    return dataclasses.replace(base, **changes)


def test_the_batch_must_be_the_product_of_its_parts() -> None:
    config().check()
    config(accumulation=4).check(ranks=4)
    message = r"micro_batch_size 16 x accumulation 16 x 2 rank\(s\) = 512, but global_batch_size is 256"
    with pytest.raises(TrainConfigError, match=message):
        config().check(ranks=2)


def test_ranks_that_share_a_sample_count_once() -> None:
    pairs = config(accumulation=4, parallel=ParallelConfig(tensor=2))
    pairs.check(ranks=8)
    message = r"accumulation 4 x 2 rank\(s\) \(4 / parallel.tensor 2\) = 128, but global_batch_size is 256"
    with pytest.raises(TrainConfigError, match=message):
        pairs.check(ranks=4)


def test_an_arrangement_that_does_not_divide_the_ranks_shows_the_arithmetic() -> None:
    message = r"6 process\(es\) cannot be parallel.replicate 2 copies x parallel.tensor 2: 2 x 2 = 4 does not"
    with pytest.raises(TrainConfigError, match=message):
        ParallelConfig(tensor=2, replicate=2).check(6)
    with pytest.raises(TrainConfigError, match=r"parallel.tensor = 0 must be 1 or more"):
        ParallelConfig(tensor=0).check(1)
    with pytest.raises(TrainConfigError, match=r"selective has no access to layers compiled by inductor"):
        ParallelConfig(compile="inductor", activation_checkpointing="selective").check(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps = 0 must be 1 or more"),
        ({"save_every": 0}, "save_every = 0 must be 1 or more"),
        ({"keep_last": 0}, "keep_last = 0 must be 1 or more"),
        ({"keep_every": 700}, "keep_every 700 must be a multiple of save_every 500"),
        ({"log_every": -1}, "log_every = -1 must be 1 or more"),
        ({"steps": 1000}, "optim.warmup_steps 1000 must be below steps 1000"),
        (
            {"optim": OptimConfig(max_grad_norm=0)},
            "optim.max_grad_norm = 0 must be above 0; .inf does not clip",
        ),
        ({"data": DataConfig(sources=[])}, "data.sources must be there"),
        (
            {"data": DataConfig(sources=[SourceConfig(name="a", path=Path(p)) for p in "xy"])},
            r"different names: \['a', 'a'\]",
        ),
        (
            {"data": DataConfig(sources=[SourceConfig(name="a", path=Path("x"), augment="flop")])},
            "data.sources.a.augment = 'flop' must be one of none, crop, flip, crop_flip",
        ),
        ({"data": DataConfig(sources=config().data.sources, seed=-1)}, "data.seed = -1 must be 0 or more"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        config(**changes).check()


NAN, INF, HUGE = math.nan, math.inf, 10**23
SOURCE = SourceConfig(name="a", path="a.jsonl")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("optim", {"lr": 0.0}, "optim.lr = 0.0 must be above 0"),
        ("optim", {"lr": -1.0}, "optim.lr = -1.0 must be above 0"),
        ("optim", {"lr": NAN}, "optim.lr = nan must be a finite number"),
        ("optim", {"min_lr": 1.0}, "optim.min_lr 1.0 must not be above optim.lr 0.0001"),
        ("optim", {"min_lr": -1e-9}, "optim.min_lr = -1e-09 must be 0 or more"),
        ("optim", {"warmup_steps": -1}, "optim.warmup_steps = -1 must be 0 or more"),
        ("optim", {"betas": (0.9, 1.0)}, r"optim.betas = \(0.9, 1.0\) must be below 1"),
        ("optim", {"betas": (-0.1, 0.9)}, r"optim.betas = \(-0.1, 0.9\) must be 0 or more"),
        ("optim", {"betas": (0.9,)}, r"optim.betas = \(0.9,\) must be a list"),
        ("optim", {"eps": 0.0}, "optim.eps = 0.0 must be above 0"),
        ("optim", {"weight_decay": -1.0}, "optim.weight_decay = -1.0 must be 0 or more"),
        ("optim", {"weight_decay": INF}, "optim.weight_decay = inf must be a finite number"),
        ("optim", {"max_grad_norm": NAN}, "optim.max_grad_norm = nan must be a finite number"),
        ("data", {"max_tokens": -5}, "data.max_tokens = -5 must be 2 or more"),
        ("data", {"seed": HUGE}, f"data.seed = {HUGE} must be at most 9,223,372,036,854,775,807"),
        ("data", {"num_workers": -1}, "data.num_workers = -1 must be 0 or more"),
        ("data", {"num_frames": 0}, "data.num_frames = 0 must be 1 or more"),
        ("data", {"max_bad_fraction": -1.0}, "data.max_bad_fraction = -1.0 must be 0 or more"),
        ("data", {"max_bad_fraction": 1.5}, "data.max_bad_fraction = 1.5 must be at most 1"),
        ("data", {"pack_tokens": 100}, "data.pack_tokens 100 must be at least data.max_tokens 2048"),
        ("data", {"targets": "nothing"}, "data.targets = 'nothing' must be one of answers, all"),
        ("parallel", {"timeout_s": 0}, "parallel.timeout_s = 0 must be 1 or more"),
        ("parallel", {"replicate": -2}, "parallel.replicate = -2 must be 1 or more"),
        ("parallel", {"compile": ""}, "parallel.compile = '' must be text"),
        ("ema", {"decay": NAN}, "ema.decay = nan must be a finite number"),
        ("lora", {"rank": 0}, "lora.rank = 0 must be 1 or more"),
        ("lora", {"alpha": -1.0}, "lora.alpha = -1.0 must be above 0"),
        ("lora", {"seed": -1}, "lora.seed = -1 must be 0 or more"),
        ("lora", {"targets": []}, "lora.targets is empty"),
        ("lora", {"base_dtype": "int8"}, "lora.base_dtype = 'int8' must be one of float32, nf4"),
        ("validation", {"max_samples": 0}, "validation.max_samples = 0 must be 1 or more"),
        ("validation", {"sources": []}, "validation.sources must be there"),
        ("source", {"weight": NAN}, "data.sources.a.weight = nan must be a finite number"),
        ("source", {"weight": -1.0}, "data.sources.a.weight = -1.0 must be 0 or more"),
        ("source", {"weight": "big"}, "data.sources.a.weight = 'big' must be a number or size"),
        ("source", {"weight": 0}, "data.sources: every weight is 0"),
        ("source", {"name": ""}, r"data.sources\[0\]\.name = '' must be text"),
        ("source", {"path": ""}, "data.sources.a.path = '' must be text"),
        ("source", {"name": "a:b"}, "a name of data.sources has a colon"),
        ("source", {"path": "a\0.jsonl"}, r"data.sources.a.path = .* must be text without NUL"),
        ("source", {"path": "\ud83d.jsonl"}, r"data.sources.a.path = .* broken characters"),
        (
            "rule",
            {"lr": 0.0},
            r"rules\[0\].lr = 0.0 must be above 0; frozen: true keeps parameters as they are",
        ),
        ("rule", {"layer_decay": 1.5}, r"rules\[0\].layer_decay = 1.5 must be at most 1"),
        ("rule", {"weight_decay": -0.1}, r"rules\[0\].weight_decay = -0.1 must be 0 or more"),
        ("", {"global_batch_size": 0}, "global_batch_size = 0 must be 1 or more"),
        ("", {"image_size": 0}, "image_size = 0 must be 1 or more"),
        ("", {"keep_every": 0}, "keep_every = 0 must be 1 or more"),
        ("", {"skip_nonfinite": -1}, "skip_nonfinite = -1 must be 0 or more"),
        ("", {"steps": True}, "steps = True must be a whole number"),
        ("", {"steps": 1.5}, "steps = 1.5 must be a whole number"),
        ("", {"steps": HUGE}, f"steps = {HUGE} must be at most"),
        ("", {"dtype": "float16"}, "dtype = 'float16' must be one of float32, bfloat16"),
        ("", {"objective": "rhyme"}, "objective = 'rhyme' must be one of next_token, bag_of_words"),
        ("", {"device": ""}, "device = '' must be text"),
        ("", {"run": None}, "run = None must be a path"),
    ],
)
def test_impossible_settings_are_named_with_their_bound(
    part: str, changes: dict[str, Any], message: str
) -> None:
    parts: dict[str, Any] = {
        "optim": lambda: {"optim": OptimConfig(**changes)},
        "data": lambda: {"data": DataConfig(**{"sources": [SOURCE], **changes})},
        "parallel": lambda: {"parallel": ParallelConfig(**changes)},
        "ema": lambda: {"ema": EmaConfig(**changes)},
        "lora": lambda: {"lora": LoraConfig(**changes)},
        "validation": lambda: {"validation": ValidationConfig(**{"sources": [SOURCE], **changes})},
        "source": lambda: {"data": DataConfig(sources=[dataclasses.replace(SOURCE, **changes)])},
        "rule": lambda: {"rules": [Rule(**{"match": "*", **changes})]},
        "": lambda: changes,
    }
    with pytest.raises(TrainConfigError, match=message):
        config(**parts[part]()).check()


def test_an_unknown_template_is_named_with_the_nearest() -> None:
    with pytest.raises(TemplateError, match="unknown template 'vicuna'; nearest is 'vicuna_v1'"):
        config(data=DataConfig(sources=[SOURCE], template="vicuna")).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' is unknown; PyTorch sees"),
        ({"device": "cuda:77"}, "device cuda:77 is not there: PyTorch sees"),
        ({"device": "meta"}, "device meta is not there: PyTorch sees"),
        (
            {"parallel": ParallelConfig(compile="foo")},
            "parallel.compile 'foo' is no backend of torch.compile",
        ),
    ],
)
def test_what_the_machine_does_not_have_is_refused_before_anything_is_loaded(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small = {"global_batch_size": 1, "micro_batch_size": 1, "accumulation": 1, "run": tmp_path / "run"}
    with pytest.raises(Owl2Error, match=message):
        train(config(**small, **changes), quiet())
    assert not (tmp_path / "run").exists()


def test_no_clipping_is_written_as_infinity() -> None:
    config(optim=OptimConfig(max_grad_norm=math.inf)).check()


def test_a_home_folder_may_be_written_as_a_tilde() -> None:
    home = Path.home()
    source = SourceConfig(name="a", path="~/a.jsonl", image_root=Path("~/images"))
    assert (source.path, source.image_root) == (f"{home}/a.jsonl", f"{home}/images")
    assert (config(run=Path("~/r")).run, config(model="~/m").model) == (home / "r", home / "m")


def test_the_augmentations_of_a_source_are_those_that_there_are() -> None:
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    kinds = get_args(get_type_hints(SourceConfig)["augment"])
    seen = {kind: {augment(image, kind, seed).tobytes() for seed in range(20)} for kind in kinds}
    counts = {kind: len(images) for kind, images in seen.items()}
    assert (counts["none"], counts["flip"]) == (1, 2)
    assert min(counts["crop"], counts["crop_flip"]) > 10
    assert len(counts) == 4


def test_the_configuration_is_read_without_torch() -> None:
    code = "import sys, owl2.train.config, owl2.train.signals; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

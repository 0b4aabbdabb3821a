"""Length by epochs and shares, `auto` for the machine, hub ids and `~`: what nobody has to work out."""

import dataclasses
import io
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from owl2.__main__ import main
from owl2.checkpoint import CheckpointError
from owl2.cli.train import read_config
from owl2.train import loop
from owl2.train.config import OptimConfig, TrainConfig, TrainConfigError, ValidationConfig
from owl2.train.metrics import read_metrics
from owl2.train.optim import lr_at
from owl2.train.prepare import on_this_machine
from owl2.train.report import RunFiles, page
from tests.train.tiny import STEPS, losses, quiet, run_until, run_whole, stage


def said_by(config: TrainConfig) -> str:
    console = Console(file=io.StringIO(), width=200)
    loop.train(config, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


# -- length ----------------------------------------------------------------------------------------------


def test_epochs_are_steps_of_all_samples_and_can_be_raised(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = OptimConfig(lr=1e-2, warmup_steps=0.2)
    config = stage(tmp_path / "run", checkpoint, corpora, steps=0, epochs=0.5, optim=optim, save_every=1)
    assert "0.5 epochs of 40 samples are 5 steps of 4 samples, in float32 on 1 x CPU" in said_by(config)
    in_steps = dataclasses.replace(config, run=tmp_path / "steps", steps=5, epochs=None)
    run_whole(in_steps)
    assert losses(config.run) == losses(in_steps.run)
    assert read_metrics(config.run)[0]["lr"] == 1e-2, "a fifth of five steps is one"
    assert "finished before" in said_by(config)
    assert "epochs: 0.5 -> 0.75" in said_by(dataclasses.replace(config, epochs=0.75))
    assert len(losses(config.run)) == 8
    settings = yaml.safe_load((config.run / "config.yaml").read_text())
    assert (settings["steps"], settings["epochs"]) == (0, 0.75), "as it was given"
    assert "8 of 8" in page(RunFiles.read(config.run))
    cut = dataclasses.replace(config, run=tmp_path / "cut")
    run_until(cut, 2, monkeypatch)
    run_whole(cut)
    assert losses(cut.run) == losses(in_steps.run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps = 0 must be 1 or more, or `epochs` given"),
        ({"epochs": 2.0}, r"steps 7 and epochs 2 are both given; .* --epochs null or --steps 0"),
        ({"steps": 0, "epochs": 0.0}, r"epochs = 0.0 must be above 0"),
        ({"optim": OptimConfig(warmup_steps=1.5)}, r"optim.warmup_steps 1.5 must be a whole number"),
        (
            {"validation": ValidationConfig(every=2.5)},
            r"validation.every 2.5 must be a whole number of steps",
        ),
    ],
)
def test_a_length_that_is_none_is_an_error(
    changes: dict[str, object], message: str, checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainConfigError, match=message):
        stage(tmp_path, checkpoint, corpora, **changes).check()


def test_a_warm_up_that_is_longer_than_the_epochs_is_an_error(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = stage(tmp_path / "run", checkpoint, corpora, steps=0, epochs=0.1)  # a step
    with pytest.raises(TrainConfigError, match=r"optim.warmup_steps 2 must be below steps 1"):
        run_whole(config)


def test_a_warm_up_as_a_share_is_that_of_as_many_steps() -> None:
    share, steps = OptimConfig(warmup_steps=0.03), OptimConfig(warmup_steps=30)
    assert [lr_at(n, 1000, share) for n in range(1000)] == [lr_at(n, 1000, steps) for n in range(1000)]
    assert lr_at(0, 10, share) == share.lr, "a share of less than half a step is none"


def test_a_plan_of_epochs_opens_the_data_and_says_so_where_there_is_none(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "configs/finetune.yaml", "--gpus", "1", "--model", "tiny", "--data.max_tokens", "64"]
    words += [
        "--parallel.activation_checkpointing",
        "none",
        f"--data.sources=[{{name: a, path: {corpora}/chat.jsonl}}]",
    ]
    pytest.importorskip("peft")
    main(words)
    assert "45 steps" in capsys.readouterr().out, "20 epochs of 18 samples in eights"
    with pytest.raises(SystemExit):
        main([*words, "--data.sources=[{name: a, path: nowhere.jsonl}]"])
    assert "nowhere.jsonl does not exist; epochs need the data, or plan with --epochs null --steps N" in (
        capsys.readouterr().err
    )


# -- machine ---------------------------------------------------------------------------------------------


def test_auto_is_what_the_machine_has_and_is_recorded(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = stage(tmp_path, checkpoint, corpora, device="auto", dtype="auto")
    has_gpu = torch.cuda.is_available()
    run_whole(config)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["device"] == ("cuda" if has_gpu else "cpu")
    assert settings["dtype"] in (["bfloat16", "float32"] if has_gpu else ["float32"])
    assert "finished before" in said_by(config)


def test_a_gpu_with_bfloat16_gets_it(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage(tmp_path, checkpoint, corpora, device="auto", dtype="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_it, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it
        )
        found = on_this_machine(config)
        assert (found.device, found.dtype) == ("cuda", dtype)
        assert on_this_machine(dataclasses.replace(config, device="cpu")).dtype == "float32"


def test_a_run_that_goes_on_elsewhere_keeps_its_type(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = stage(tmp_path / "run", checkpoint, corpora, dtype="bfloat16")
    run_until(begun, 3, monkeypatch)
    run_whole(dataclasses.replace(begun, device="auto", dtype="auto"))
    whole = dataclasses.replace(begun, run=tmp_path / "whole")
    run_whole(whole)
    assert losses(begun.run) == losses(whole.run)
    assert len(losses(begun.run)) == STEPS


# -- where things are ------------------------------------------------------------------------------------


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a repository in the hub's cache; there is no connection."""
    from huggingface_hub import constants

    folder = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(checkpoint, folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "owner/tiny"


def test_a_stage_starts_from_a_hub_id_as_from_its_folder(
    hub: str, checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = stage(tmp_path / "hub-run", Path(hub), corpora)
    run_whole(config)
    same = dataclasses.replace(config, run=tmp_path / "folder-run", model=checkpoint)
    run_whole(same)
    assert losses(config.run) == losses(same.run)
    assert yaml.safe_load((config.run / "config.yaml").read_text())["model"] == hub


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("owner/other", r"hub cannot be reached, .* run `hf download owner/other --local-dir DIR`"),
        ("owner/a--b", r"owner/a--b is not a local folder, and no hub id"),
        ("none", r"none does not exist; expected a folder, or a hub id such as owner/name"),
    ],
)
def test_a_model_that_is_nowhere_is_one_error_and_leaves_no_folder(
    model: str, message: str, hub: str, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        loop.train(stage(tmp_path / "run", Path(model), corpora), quiet())
    assert not (tmp_path / "run").exists()


def test_the_home_folder_is_found_in_every_path(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "stage.yaml"
    file.write_text(
        "run: ~/run\nmodel: ~/model\nsteps: 2000\nrules: [{match: '*'}]\n"
        "data: {sources: [{name: a, path: ~/a.jsonl, image_root: ~/images}]}\n"
        "validation: {sources: [{name: b, path: ~/b}]}\n"
    )
    config = read_config([str(file), "--config=~/stage.yaml"])
    assert config.validation is not None
    (source,), (held_out,) = config.data.sources, config.validation.sources
    paths = [config.run, config.model, source.path, source.image_root, held_out.path]
    assert [str(path) for path in paths] == [
        str(tmp_path / name) for name in ("run", "model", "a.jsonl", "images", "b")
    ]
    shutil.copytree(corpora, tmp_path / "mine")
    shutil.copytree(checkpoint, tmp_path / "model")
    main(["data", "inspect", "~/mine/chat.jsonl", "--model", "~/model", "--out", "~/page.html"])
    assert (tmp_path / "page.html").exists()
    main(["train", "--config=~/stage.yaml", "--print_config"])

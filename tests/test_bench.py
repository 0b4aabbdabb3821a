"""Benchmarks compare like with like: on a small layer, what they time gives equal outputs and gradients."""

import json
from pathlib import Path

import pytest
import torch

from bench import train
from bench.mam import Bench, main


@pytest.mark.parametrize("rows_with_image", [0, 1, 2])
def test_the_timed_variants_of_mam_have_equal_gradients(rows_with_image: int) -> None:
    bench = Bench.make(width=64, batch=2)
    runs = bench.forward_runs(rows_with_image, backward=True)  # raises if outputs differ
    gradients = {}
    for name in ("split", "static", "released"):
        bench.mam.zero_grad(set_to_none=True)
        runs[name]()
        parameters = bench.mam.named_parameters()
        gradients[name] = {n: torch.zeros(()) if p.grad is None else p.grad for n, p in parameters}
    for name in ("static", "released"):
        for parameter, expected in gradients["split"].items():
            ours = gradients[name][parameter]
            torch.testing.assert_close(*torch.broadcast_tensors(ours, expected), rtol=1e-3, atol=1e-2)


def test_the_mam_benchmark_prints_a_table_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.mam.MIN_SAMPLE_S", 0.001)
    threads = torch.get_num_threads()
    main(width=64, batch=2, rounds=1, out=tmp_path / "mam.json")
    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "mam.json").read_text())
    assert record["width"] == 64
    assert set(record["results"]["prefill"]) == {"plain", "split", "static", "released"}
    assert all(work["plain"]["ratio"] == 1 for work in record["results"].values())
    assert "decode, one token" in capsys.readouterr().out


SMALL = (64, 2, 2, 30, 200)
"""Width, layers, rows, labelled tokens a row, vocabulary."""


@pytest.mark.parametrize(
    ("labelled", "idle"), [(171, []), (1, ["model.layers.1.post_attention_layernorm.multiway.1.weight"])]
)
def test_both_formulations_of_a_training_step_have_equal_losses_and_gradients(
    labelled: int, idle: list[str]
) -> None:
    bench = train.Bench.make(64, 2, 2, labelled, 200)
    assert bench.batch.targets.count == 2 * labelled
    train.check_equal(bench)
    (_, gradients), *_ = (bench.gradients(name) for name in train.FORMULATIONS)
    assert [name for name, gradient in gradients.items() if not gradient.any()] == idle


def test_formulations_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = train.Bench.make(*SMALL)
    monkeypatch.setitem(train.FORMULATIONS, "ours", lambda *given: 1.0001 * train.our_loss(*given))
    with pytest.raises(AssertionError, match="losses differ"):
        train.check_equal(bench)


def test_a_step_of_either_formulation_is_timed_in_its_parts_and_learns() -> None:
    bench = train.Bench.make(*SMALL)
    figures = train.measure_time(bench, rounds=2)
    assert set(figures) == {"ours", "released"}
    assert figures["ours"]["ratio"] == 1
    for row in figures.values():
        assert 0 < row["forward"] < row["step"]
    assert bench.step("ours")["loss"] < train.Bench.make(*SMALL).step("ours")["loss"]


@pytest.mark.slow
def test_the_training_benchmark_prints_a_table_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    train.main(*SMALL, rounds=1, out=tmp_path / "train.json")
    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["labelled"] == 30
    assert record["memory"]["ours"]["rest"] == record["memory"]["released"]["rest"] > 0
    assert "released" in capsys.readouterr().out

"""Benchmarks compare like with like: on a small layer, what they time gives equal outputs and gradients."""

import json
from pathlib import Path

import pytest
import torch

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

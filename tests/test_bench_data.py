"""The data benchmark reads the same images by every loader, and writes down its figures."""

import json
from pathlib import Path

import pytest
import torch

from bench.data import main, own_cache, watch_memory


def test_the_data_benchmark_prints_its_tables_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    main(images=8, size=28, rounds=1, samples=40, out=tmp_path / "data.json")
    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "data.json").read_text())
    assert set(record["results"]) == {"pillow", "owl2", "folder", "webdataset"}
    assert record["results"]["pillow"]["ratio"] == 1
    assert record["memory"][-1]["samples"] == 40
    assert record["memory"][-1]["worker"] > 0
    assert "samples read" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_read() -> None:
    with own_cache() as root:
        read = watch_memory(root, 100_000)[2:]
    for process in ("main", "worker"):
        assert read[-1][process] - read[0][process] < 20, read

"""Loading a large folder needs no more memory than its weights: 1.1 GB of pickled half-precision shards.

Every load runs in a process of its own, whose peak is read from the kernel (VmHWM): file pages that a memory
map has touched count as well as our own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from owl2.checkpoint import convert
from owl2.model import Owl2Config, build, preset
from owl2.model.config import DecoderConfig

CONFIG = Owl2Config(
    vision=preset("tiny").vision,
    abstractor=preset("tiny").abstractor,
    decoder=DecoderConfig(
        hidden_size=1280,
        intermediate_size=3456,
        num_hidden_layers=20,
        num_attention_heads=10,
        num_key_value_heads=10,
    ),
)
SHARDS = 21
LIMIT = 1.1

LOAD = """
import json, sys, warnings
import torch
from owl2.checkpoint import load_model, save_checkpoint
from owl2.model import build

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024

folder, dtype, small = sys.argv[1:]
save_checkpoint(build("tiny"), small)
load_model(small, dtype=dtype)  # what any load brings in once
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = memory("VmRSS")
model = load_model(folder, dtype=dtype)
loading = memory("VmHWM") - before
parameters = list(model.named_parameters())
wrong = [n for i, (n, value) in enumerate(parameters) if value.min() != i % 100 or value.max() != i % 100]
print(json.dumps({
    "weights": sum(p.nbytes for _, p in parameters),
    "loading": loading,
    "used": memory("VmHWM") - before,
    "wrong": wrong,
}))
"""


def full(index: int, shape: torch.Size) -> torch.Tensor:
    return torch.full(shape, index % 100, dtype=torch.float16)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """Half-precision shards with an index; parameter i is full of i modulo 100."""
    folder = tmp_path_factory.mktemp("released")
    shapes = [(name, p.shape) for name, p in build(CONFIG, device="meta").named_parameters()]
    files = [f"pytorch_model-{i + 1}-of-{SHARDS}.bin" for i in range(SHARDS)]
    weight_map = {name: files[i * SHARDS // len(shapes)] for i, (name, _) in enumerate(shapes)}
    for file in files:
        shard = {name: full(i, s) for i, (name, s) in enumerate(shapes) if weight_map[name] == file}
        torch.save(shard, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    assert sum(p.stat().st_size for p in folder.glob("*.bin")) >= 10**9
    return folder


@pytest.fixture(scope="module")
def one_pickle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one_pickle")
    parameters = build(CONFIG, device="meta").named_parameters()
    torch.save(
        {name: full(i, p.shape) for i, (name, p) in enumerate(parameters)}, folder / "pytorch_model.bin"
    )
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


@pytest.fixture(scope="module")
def one_safetensors(released, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "ours"
    convert(released, folder, progress=False)
    assert (folder / "model.safetensors").stat().st_size >= 10**9
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("layout", ["released", "one_pickle", "one_safetensors"])
def test_loading_and_using_all_weights_peaks_at_their_own_size(request, tmp_path, layout, dtype):
    folder = request.getfixturevalue(layout)
    command = [sys.executable, "-c", LOAD, str(folder), dtype, str(tmp_path / "small")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["weights"] >= (2.1e9 if dtype == "float32" else 1.05e9)
    ratios = {key: found[key] / found["weights"] for key in ("loading", "used")}
    print(f"{layout} as {dtype}: {found['weights'] / 1e9:.2f} GB of weights, peak growth {ratios}")
    assert ratios["loading"] <= LIMIT
    assert ratios["used"] <= LIMIT
    if dtype == "float16":
        assert ratios["loading"] < 0.1  # memory-mapped: nothing is read before it is used

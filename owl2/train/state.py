"""A run's state on disk: model, optimizer and step, complete or absent.

`state/step-N/` is written under a temporary name and renamed, so a folder with the final name is whole. All
tensors are safetensors; no pickle. The data position is the step itself (data/order.py), so nothing else is
needed to go on with the losses of the uninterrupted run.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from owl2.model import Owl2Model

MODEL, OPTIMIZER, STEP = "model.safetensors", "optimizer.safetensors", "step.json"


def save_state(
    run: Path, step: int, model: Owl2Model, optimizer: torch.optim.Optimizer, keep_last: int
) -> Path:
    """Write `run/state/step-N` after N finished steps and drop all but the newest `keep_last`."""
    folder = run / "state" / f"step-{step:07d}"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, partial / MODEL)
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, p in parameters.items()
        for key, value in optimizer.state.get(p, {}).items()
    }
    save_file(moments, partial / OPTIMIZER)
    (partial / STEP).write_text(json.dumps({"step": step}))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for old in saved_states(run)[:-keep_last]:
        shutil.rmtree(old)
    return folder


def saved_states(run: Path) -> list[Path]:
    """The complete states of a run, oldest first."""
    return sorted(p for p in (run / "state").glob("step-*") if p.suffix != ".partial")


@torch.no_grad()
def load_state(folder: Path, model: Owl2Model, optimizer: torch.optim.Optimizer) -> int:
    """Restore model and optimizer in place and return the number of finished steps."""
    parameters = dict(model.named_parameters())
    with safe_open(folder / MODEL, "pt") as file:
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(name))
    with safe_open(folder / OPTIMIZER, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is not iterable
            name, _, slot = key.rpartition(".")
            parameter = parameters[name]
            optimizer.state[parameter][slot] = file.get_tensor(key).to(
                parameter.device if slot != "step" else "cpu"
            )
    return int(json.loads((folder / STEP).read_text())["step"])

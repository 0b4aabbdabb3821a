"""A run's state on disk: model, optimizer and step, complete or absent.

`state/step-N/` is written under another name, brought to the disk and renamed, so a folder with the final
name is whole; it loses that name before it is removed. All tensors are safetensors; no pickle. The data
position is the step itself (data/order.py), so nothing else is needed to go on with the losses of the
uninterrupted run.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from owl2.checkpoint import CheckpointError
from owl2.checkpoint.errors import first_few
from owl2.checkpoint.write import new_folder
from owl2.model import Owl2Model

MODEL, OPTIMIZER, STEP = "model.safetensors", "optimizer.safetensors", "step.json"


def save_state(
    run: Path, step: int, model: Owl2Model, optimizer: torch.optim.Optimizer, keep_last: int
) -> Path:
    """Write `run/state/step-N` after N finished steps and drop all but the newest `keep_last`.

    Raises:
        CheckpointError: the disk has too little room; the earlier states stand.
    """
    folder = run / "state" / f"step-{step:07d}"
    for unfinished in folder.parent.glob(".step-*"):  # of a run that was killed while saving
        shutil.rmtree(unfinished)
    parameters = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }
    num_bytes = sum(tensor.nbytes for tensor in (*parameters.values(), *moments.values()))
    with new_folder(folder, need_bytes=num_bytes) as temporary:
        save_file(parameters, temporary / MODEL)
        save_file(moments, temporary / OPTIMIZER)
        (temporary / STEP).write_text(json.dumps({"step": step}))
    for old in saved_states(run)[:-keep_last]:
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))
    return folder


def saved_states(run: Path) -> list[Path]:
    """The complete states of a run, oldest first."""
    return sorted((run / "state").glob("step-*"))


@torch.no_grad()
def load_state(folder: Path, model: Owl2Model, optimizer: torch.optim.Optimizer) -> int:
    """Restore model and optimizer in place and return the number of finished steps.

    Raises:
        CheckpointError: the state is damaged, or of another model.
    """
    parameters = dict(model.named_parameters())
    try:
        with safe_open(folder / MODEL, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            _check_fit(folder, parameters, shapes)
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(name))
        with safe_open(folder / OPTIMIZER, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is not iterable
                name, _, slot = key.rpartition(".")
                parameter = parameters[name]
                # The step count too: the fused AdamW keeps it beside the parameter. A copy, because the
                # tensor is a window into a file that the run will remove.
                optimizer.state[parameter][slot] = file.get_tensor(key).to(parameter.device, copy=True)
        return int(json.loads((folder / STEP).read_text())["step"])
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{folder} is damaged: {error}; remove it, and the run continues from the state before"
        ) from error


def _check_fit(folder: Path, parameters: Mapping[str, Tensor], found: Mapping[str, list[int]]) -> None:
    expected = {name: list(parameter.shape) for name, parameter in parameters.items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        raise CheckpointError(
            f"{folder} is the state of another model: {len(wrong)} parameters are missing, too many or of "
            f"another shape ({first_few(wrong)}); choose another folder for this run"
        )

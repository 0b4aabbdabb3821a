"""Sharded checkpoints: folders that many ranks read and write, while none of them holds the whole model.

Reading: every rank maps the same files and copies its own part of one layer after the other. Writing: the
ranks gather one tensor at a time, and the first writes it. The folders are the same as those of one process.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from owl2.checkpoint import save_checkpoint
from owl2.checkpoint.folder import IGNORED, fit, skeleton
from owl2.checkpoint.tensors import TensorFolder, dtype_of
from owl2.model import Owl2Model, reset_buffers
from owl2.processor import Processor
from owl2.train.adapters.lora import add_adapters, checkpoint_name, initial_adapter, is_adapter
from owl2.train.adapters.qlora import quantize_bases
from owl2.train.config import LoraConfig
from owl2.train.parallel import Sharding, gather_whole, set_parameter, shard_layers
from owl2.train.ranks import Ranks


def load_sharded(folder: Path, sharding: Sharding, device: str, lora: LoraConfig | None = None) -> Owl2Model:
    """Load a checkpoint in float32 with every layer sharded; what is outside the layers is still whole.

    Adapters, if the stage has any, are added before anything is loaded.

    Raises:
        CheckpointError: see `owl2.checkpoint.load_model`.
        TrainConfigError: the model cannot be split like this.
    """
    model = skeleton(folder, torch.float32)
    files = TensorFolder(folder)
    fit(model, files)
    if lora is not None:
        add_adapters(model, lora)
    names = {module: name for name, module in model.named_modules()}

    def fill(part: nn.Module) -> None:
        empty = [
            module for module in part.modules() if any(tensor.is_meta for tensor in _own(module).values())
        ]
        for module in empty:
            module.to_empty(device=device, recurse=False)
        reset_buffers(empty)  # before the files, which may have some of them
        for module in empty:
            for name, tensor in _own(module).items():
                full_name = checkpoint_name(f"{names[module]}.{name}")
                if full_name in files and not full_name.endswith(IGNORED):
                    set_parameter(tensor, files.read(full_name, dtype=torch.float32))
                elif lora is not None and is_adapter(full_name):
                    set_parameter(tensor, initial_adapter(full_name, tensor.shape, lora.seed))
        if lora is not None and lora.base_dtype == "nf4":
            quantize_bases(part)

    shard_layers(model, sharding, fill)
    return model.eval()


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, without those of the modules in it."""
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def save_sharded(
    model: Owl2Model, folder: Path, processor: Processor, dtype: str, ranks: Ranks, notes: str = ""
) -> None:
    """Write the checkpoint folder of a model whose parameters may be sharded; called by every rank.

    `notes` end the model card.

    Raises:
        CheckpointError: on the first rank, see `owl2.checkpoint.save_checkpoint`.
    """
    if ranks.is_first:
        save_checkpoint(
            model, folder, processor=processor, dtype=dtype_of(dtype), whole=gather_whole, notes=notes
        )
    else:
        for tensor in model.state_dict().values():
            gather_whole(tensor)
    ranks.wait_for_all()

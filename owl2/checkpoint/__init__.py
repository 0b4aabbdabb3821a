"""Checkpoint folders: read the released layout and ours, assemble models from parts, write safetensors."""

from owl2.checkpoint.assemble import Assembled, assemble
from owl2.checkpoint.convert import Conversion, convert
from owl2.checkpoint.errors import CheckpointError
from owl2.checkpoint.folder import load_model, read_config, resolve
from owl2.checkpoint.write import check_absent, save_checkpoint

__all__ = [
    "Assembled",
    "CheckpointError",
    "Conversion",
    "assemble",
    "check_absent",
    "convert",
    "load_model",
    "read_config",
    "resolve",
    "save_checkpoint",
]

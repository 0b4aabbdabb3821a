"""The model in plain PyTorch, without any knowledge of training, files or serving.

Start with `owl2.py`, which puts it together, then `layout.py`, which says how a batch is packed. For a new
part copy `abstractor.py`; `parts.py` lists the methods by which the rest of the program finds it.
"""

from owl2.model.cache import KVCache
from owl2.model.config import ConfigError, Owl2Config, preset
from owl2.model.layout import Layout, Targets, decode_layout, packed_layout, padded_layout, targets_of
from owl2.model.owl2 import Owl2Model, build
from owl2.model.parts import Work, reset_buffers

__all__ = [
    "ConfigError",
    "KVCache",
    "Layout",
    "Owl2Config",
    "Owl2Model",
    "Targets",
    "Work",
    "build",
    "decode_layout",
    "packed_layout",
    "padded_layout",
    "preset",
    "reset_buffers",
    "targets_of",
]

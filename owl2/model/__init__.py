"""The model: pure PyTorch, no knowledge of training, files or serving."""

from owl2.model.cache import KVCache
from owl2.model.config import ConfigError, Owl2Config, preset
from owl2.model.layout import Layout, Targets, decode_layout, packed_layout, padded_layout, targets_of
from owl2.model.owl2 import Owl2Model, build

__all__ = [
    "ConfigError",
    "KVCache",
    "Layout",
    "Owl2Config",
    "Owl2Model",
    "Targets",
    "build",
    "decode_layout",
    "packed_layout",
    "padded_layout",
    "preset",
    "targets_of",
]

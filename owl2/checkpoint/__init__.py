"""Checkpoint folders: reading the released layout and ours, new models from pretrained parts, writing.

Start with `write.py` (what is in a checkpoint folder, and how it is written) and `folder.py` (a folder
becomes a model). For another vision encoder copy `clip.py`, for another language model `llama.py`, and enter
it in `assemble.py`.
"""

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

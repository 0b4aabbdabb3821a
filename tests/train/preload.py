"""What the server of the pool imports once for all ranks."""

import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor.parallel  # noqa: F401

import owl2.train.loop  # noqa: F401

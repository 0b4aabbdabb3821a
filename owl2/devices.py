"""Devices of this machine, by name."""

import torch

from owl2.errors import Owl2Error


class DeviceError(Owl2Error, ValueError):
    """A device that PyTorch does not know or this machine does not have."""


def find_device(name: str | torch.device) -> torch.device:
    """Return a device of this machine.

    Raises:
        DeviceError: PyTorch does not know it, or this machine does not have it.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device {name!r} is unknown; PyTorch sees {_devices()}") from error
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each backend that is missing has its own
        raise DeviceError(f"device {name} is not there: PyTorch sees {_devices()}") from error
    if device.type == "cpu" and device.index:
        raise DeviceError(f"device {name} is not there: PyTorch counts all CPUs as one, cpu")
    return device


def _devices() -> str:
    """The devices of this machine, for an error."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    found += [kind for kind in ("mps", "xpu") if getattr(torch, kind).is_available()]
    return ", ".join(found)

"""`owl2 train CONFIG [--key.path value ...]`: run or continue a stage."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from owl2.train.config import TrainConfig


def train_command(config: TrainConfig) -> None:
    """Run the stage; a stop request ends with exit code 75 after saving, an error with 1."""
    from owl2.train.loop import Interrupted, train

    try:
        print(train(config))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(75) from None

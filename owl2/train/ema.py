"""An exponential moving average of the weights, which often answers better than those of the last step.

After every step, average = decay x average + (1 - decay) x weights, starting with the run's first weights.
Only trainable parameters are averaged, in float32. Each rank averages the parts that it holds, so nothing is
communicated, and the average takes as much memory as those parameters. It is saved with every state.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from owl2.train.parallel import local_part


class MovingAverage:
    """The average of a model's trainable parameters, sharded as they are."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a finished step to the average."""
        averages = [local_part(average) for average in self.averages.values()]
        weights = [local_part(parameter) for parameter in self.parameters.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The averages by their name in a state; the tensors themselves, to be written or filled."""
        return {f"ema.{name}": average for name, average in self.averages.items()}

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the model's weights with their average."""
        for name, parameter in self.parameters.items():
            local_part(parameter).copy_(local_part(self.averages[name]))

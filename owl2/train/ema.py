"""A moving average of the weights, which often answers better than the weights of the last step.

After every step, average = decay x average + (1 - decay) x weights, from the weights a run starts with.
Only what learns is averaged, in float32, and each rank averages the parts that it holds, so nothing travels
and the average needs as much memory as those parameters. It is part of a run's state, as exact as the rest.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from owl2.train.parallel import local_part


class MovingAverage:
    """The average of a model's learning parameters, shared out over the ranks as they are."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step that is done into the average."""
        averages = [local_part(average) for average in self.averages.values()]
        weights = [local_part(parameter) for parameter in self.parameters.values()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What a run's state keeps, by name; the tensors themselves, to be written or filled."""
        return {f"ema.{name}": average for name, average in self.averages.items()}

    @torch.no_grad()
    def take_the_place_of_the_weights(self) -> None:
        """Overwrite the model's weights with their average."""
        for name, parameter in self.parameters.items():
            local_part(parameter).copy_(local_part(self.averages[name]))

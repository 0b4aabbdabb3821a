"""The optimizer, AdamW with a parameter group per rule, and the learning rate as a function of the step."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from owl2.model import Owl2Model
from owl2.train.config import OptimConfig, steps_of
from owl2.train.rules import Assignment


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up to `lr`, then a cosine to `min_lr` at the last step."""
    warmup = steps_of(config.warmup_steps, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizer(
    model: Owl2Model, assignments: Sequence[Assignment], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW with a group per (learning-rate multiplier, weight decay); frozen parameters have no state."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = defaultdict(list)
    for assignment in assignments:
        if not assignment.rule.frozen:
            parameter = model.get_parameter(assignment.name)
            groups[(assignment.lr, assignment.weight_decay)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_multiplier": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to its multiple of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]

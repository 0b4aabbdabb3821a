"""Training rules: which parameters are trainable, and at which rate. An ordered table, first match wins.

The stages of the paper are such tables, not code (`owl2/configs`). A rule that matches no parameter, and a
parameter that matches no rule, are errors: either way a stage would silently train the wrong thing. The
depths of layer-wise learning-rate decay come from the model (`layer_groups()`), not from names.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from owl2.errors import Faults, Owl2Error
from owl2.model import Owl2Model
from owl2.train.config import Rule

VISION_PREFIX = "model.vision_model."
"""Of the names of the vision encoder's parameters."""


class RuleError(Owl2Error, ValueError):
    """A rule table that does not fit the model."""


@dataclass(frozen=True)
class Assignment:
    """What the table decides for one parameter."""

    name: str
    rule: Rule
    lr: float
    """Multiplier, layer decay included."""
    weight_decay: float


def assign_rules(model: Owl2Model, rules: Sequence[Rule], weight_decay: float) -> list[Assignment]:
    """Match every parameter of the model with its rule.

    Raises:
        RuleError: a rule without parameters, a parameter without a rule, a setting without effect, or a
            table in which everything is frozen.
    """
    if not rules:
        raise RuleError('rules is empty; the shortest table is [{match: "*"}]')
    _check_effect(rules)
    depths = model.layer_depths()
    unused = list(rules)
    assignments = []
    for name, parameter in model.named_parameters():
        rule = next((r for r in rules if fnmatchcase(name, r.match)), None)
        if rule is None:
            near = difflib.get_close_matches(name, [r.match for r in rules], n=1, cutoff=0)
            raise RuleError(
                f"no rule matches {name} {tuple(parameter.shape)}; nearest rule: {near[0]!r}; end the table "
                f'with {{match: "*", ...}}'
            )
        unused = [r for r in unused if r is not rule]
        if rule.layer_decay != 1.0 and name not in depths:
            raise RuleError(f"layer_decay of rule {rule.match!r} reaches {name}, outside the vision encoder")
        decay = weight_decay if rule.weight_decay is None else rule.weight_decay
        assignments.append(
            Assignment(
                name=name,
                rule=rule,
                lr=rule.lr * rule.layer_decay ** depths.get(name, 0),
                weight_decay=decay if parameter.ndim > 1 else 0.0,
            )
        )
    faults = Faults()
    for rule in unused:
        near = difflib.get_close_matches(rule.match, [a.name for a in assignments], n=3, cutoff=0)
        faults.add(
            RuleError(
                f"rule {rule.match!r} decides for no parameter (earlier rules win); nearest names: "
                f"{', '.join(near)}"
            )
        )
    faults.raise_all()
    return assignments


def _check_effect(rules: Sequence[Rule]) -> None:
    if all(rule.frozen for rule in rules):
        raise RuleError(
            f"all {len(rules)} rules are frozen, so nothing would be trained; leave `frozen` out of one"
        )
    for rule in rules:
        if rule.frozen and rule != Rule(match=rule.match, frozen=True):
            raise RuleError(
                f"rule {rule.match!r} is frozen, so its lr, layer_decay and weight_decay have no effect; "
                f"leave them out"
            )


def apply_freeze(model: nn.Module, assignments: Sequence[Assignment]) -> None:
    """Switch gradients off for frozen parameters and on for all others."""
    for assignment in assignments:
        model.get_parameter(assignment.name).requires_grad_(not assignment.rule.frozen)

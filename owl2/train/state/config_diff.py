"""Whether a configuration still is that of the run it wants to go on with.

What decides which model learns what from which samples is the run's identity: changing it in the middle
would give a result that no configuration describes, so it is an error. Anything else (steps, rates, how
often to save, how the work is split) may change; it is said, and the configuration before is kept. Frozen
weights are not in the states, so they are part of the identity, by fingerprint.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from torch import nn

from owl2.checkpoint.fingerprint import fingerprint
from owl2.files import write_file
from owl2.train.adapters.qlora import FourBitLinear
from owl2.train.config import TrainConfig, TrainConfigError, config_to_dict
from owl2.train.parallel import local_part, num_shards
from owl2.train.ranks import Ranks

FREE = (
    "run",
    "steps",
    "optim.*",
    "micro_batch_size",
    "accumulation",
    "skip_nonfinite",
    "save_*",
    "keep_*",
    "log_every",
    "trackers",
    "ema.checkpoint",
    "validation*",
    "device",
    "dtype",
    "parallel.*",
    "data.num_workers",
    "data.pack_tokens",
    "data.max_bad_fraction",
    "data.sources.*.path",
    "data.sources.*.image_root",
)
"""What may change while a run stands still."""


def changes(run: Path, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """What differs from `run/config.yaml`: dotted key to (before, now); empty without the file.

    Raises:
        TrainConfigError: something that decides what the run is; the message names all of it.
    """
    path = run / "config.yaml"
    if not path.exists():
        return {}
    before = dict(_flat(yaml.safe_load(path.read_text())))
    now = dict(_flat(yaml.safe_load(yaml.safe_dump(config_to_dict(config)))))
    # A key that one of the two lacks and that is None in the other, or was not known then, is no change.
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changed = {key: (before.get(key), now.get(key)) for key in keys}
    fixed = [key for key in changed if not any(fnmatchcase(key, pattern) for pattern in FREE)]
    if fixed:
        lines = "\n".join(f"  {key}: {changed[key][0]} -> {changed[key][1]}" for key in fixed)
        raise TrainConfigError(
            f"{run} was begun with another configuration, and these {len(fixed)} key(s) decide what it "
            f"learns:\n{lines}\nSet them back to go on ({path}), or choose another `run`"
        )
    return changed


def keep_config(run: Path, config: TrainConfig, start: int, console: Console) -> None:
    """Write `run/config.yaml`; if it changes, say how and keep the one before."""
    path = run / "config.yaml"
    changed = changes(run, config)
    if path.exists():
        if not changed:
            return
        before = run / f"config-until-step-{start}.yaml"
        path.rename(before)
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        console.print(f"{run}: changed after step {start} (before: {before.name})\n{lines}", highlight=False)
    write_file(path, yaml.safe_dump(config_to_dict(config), sort_keys=False).encode())


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionaries as dotted keys; sources by their name, other lists as one value."""
    if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        yield prefix, [v["name"] for v in value]  # their order is part of the order of samples
        value = {v["name"]: v for v in value}
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def fingerprints(model: nn.Module, ranks: Ranks) -> dict[str, int]:
    """A number for the values of each frozen parameter, the same however they are shared out.

    A matrix that is kept in four bits has that of its values before: the codes follow from them, but not on
    every device to the last bit. All ranks hold it whole.
    """
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    sums = ranks.gather([fingerprint(local_part(parameter)) for parameter in frozen.values()])
    marks = {}
    for (name, parameter), parts in zip(frozen.items(), zip(*sums, strict=True), strict=True):
        copies = ranks.size // num_shards(parameter)  # ranks that hold the same part
        marks[name] = sum(parts) // copies % 2**64
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            marks[f"{name}.weight"] = module.fingerprint
    return marks

"""The difference between a configuration and that of the run it continues.

Keys that decide which model learns what from which samples must stay: a change in the middle would give a
result that no configuration describes. All other keys (steps, rates, how often to save, how the work is
split) may change; the changes are printed, and the configuration before is kept. Of a finished run only
`steps` may be raised.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from owl2.files import write_file
from owl2.train.config import TrainConfig, TrainConfigError, config_to_dict
from owl2.train.state.state import saved_states

WITHOUT_EFFECT = (
    "run",
    "micro_batch_size",
    "accumulation",
    "skip_nonfinite",
    "save_*",
    "keep_*",
    "log_every",
    "trackers",
    "validation*",
    "device",
    "parallel.*",
    "data.num_workers",
    "data.pack_tokens",
    "data.max_bad_fraction",
    "data.accept_edits",
)
"""Keys that do not change a run's result."""

FREE = (
    *WITHOUT_EFFECT,
    "steps",
    "epochs",
    "optim.*",
    "ema.checkpoint",
    "dtype",
    "data.sources.*.path",
    "data.sources.*.image_root",
)
"""Keys that may change between two starts of a run."""

ADDED = {"data.accept_edits": False}
"""Keys that configurations written by earlier versions do not have, and what they mean there."""

Changes = Mapping[str, tuple[Any, Any]]
"""Dotted key to its value before and now."""


def changes(run: Path, config: TrainConfig) -> Changes:
    """What differs from `run/config.yaml`; empty without the file.

    Raises:
        TrainConfigError: a key that must stay has changed; the message lists all of them.
    """
    path = run / "config.yaml"
    if not path.exists():
        return {}
    before = {**ADDED, **dict(flat(read_settings(path)))}
    now = dict(flat(yaml.safe_load(yaml.safe_dump(config_to_dict(config)))))
    # A key that one of the two lacks and that is None in the other is no change.
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changed = {key: (before.get(key), now.get(key)) for key in keys}
    fixed = {key: pair for key, pair in changed.items() if not _matches(key, FREE)}
    if fixed:
        raise TrainConfigError(
            f"{run} was begun with another configuration, and these {len(fixed)} key(s) decide what it "
            f"learns:\n{_lines(fixed)}\nSet them back to go on ({path}), or choose another `run`"
        )
    return changed


def is_finished(run: Path, changed: Changes) -> bool:
    """Whether a run has its result; not if `steps` or `epochs` were raised, so that it is to go on.

    Raises:
        TrainConfigError: its result is not that of the present configuration, or it cannot go on.
    """
    checkpoint = run / "checkpoint"
    if not checkpoint.exists():
        return False
    effective = {key: pair for key, pair in changed.items() if not _matches(key, WITHOUT_EFFECT)}
    lengths = [effective.get(key, (0, 0)) for key in ("steps", "epochs")]
    if any((now or 0) > (before or 0) for before, now in lengths):
        if not saved_states(run):
            raise TrainConfigError(
                f"{run} is finished and has no state to continue from; choose another `run`, with `model` "
                f"{checkpoint}"
            )
        return False
    if effective:
        raise TrainConfigError(
            f"{run} is finished, and these {len(effective)} key(s) differ from those of its result:\n"
            f"{_lines(effective)}\nSet them back, raise `steps` to train on, or choose another `run`"
        )
    return True


def keep_config(run: Path, config: TrainConfig, start: int, console: Console) -> None:
    """Write `run/config.yaml`; print what changes, and keep the one before if the result depends on it."""
    path = run / "config.yaml"
    changed = changes(run, config)
    if path.exists():
        if not changed:
            return
        kept = ""
        if any(not _matches(key, WITHOUT_EFFECT) for key in changed):
            before = run / f"config-until-step-{start}.yaml"
            path.rename(before)
            kept = f" (before: {before.name})"
        text = f"{run}: changed after step {start}{kept}\n{_lines(changed)}"
        console.print(text, highlight=False, soft_wrap=True)
    write_file(path, yaml.safe_dump(config_to_dict(config), sort_keys=False).encode())


def read_settings(path: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run as plain data.

    Raises:
        TrainConfigError: it is damaged.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise TrainConfigError(
            f"{path} cannot be read ({reason}); restore it or choose another `run`"
        ) from None
    if not isinstance(values, dict):
        raise TrainConfigError(f"{path} has no keys; restore it or choose another `run`")
    return values


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _lines(changed: Changes) -> str:
    return "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dictionaries as dotted keys; sources by their name, other lists as one value."""
    if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        yield prefix, [v["name"] for v in value]  # their order is part of the order of samples
        value = {v["name"]: v for v in value}
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value

"""Predictions on disk: one append-only JSONL a task and rank, which a killed run continues.

The first line of `predictions/<task>.<rank>of<world>.jsonl` is the run's identity; each later line is an
answer with the hash of the prompt it answers. A batch is one write, so a killed process leaves whole lines
and at most one torn one, which the next run removes. Answers are read as the union of all files of a task, so
the number of ranks may change between runs.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error
from owl2.eval.engines.engine import Reply
from owl2.eval.hashing import short_hash
from owl2.jsonl import cut_torn_line, read_jsonl, to_line

FOLDER = "predictions"


class PredictionError(Owl2Error, ValueError):
    """Predictions that cannot be read or continued; the message names file, line and what to do."""


@dataclass(frozen=True, kw_only=True)
class Prediction(Reply):
    """A reply as it is kept."""

    id: str
    prompt_hash: str
    seconds: float = 0.0
    """The batch's time divided by its rows."""
    prompt: str = ""
    """All that was asked (`text_of`); empty in folders of earlier versions."""


@dataclass(frozen=True)
class RunConfig:
    """The identity of a task's answers, and where they come from: the first line of each of its files."""

    task: str
    template: str
    mode: str
    decoding: Mapping[str, float]
    engine: Mapping[str, Any]
    """Everything about the model that shapes an answer (`Engine.identity`), and how clips are shown."""
    data: str
    """Folder of the benchmarks, for scoring."""
    source: str
    """Checkpoint or address, as it was given."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """How `--limit` chose questions; empty for all of them."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the task's class comes from, if not from owl2 (`Registry.origin`), or its file of questions."""

    @property
    def identity(self) -> dict[str, Any]:
        """What all answers of a folder must share; places may differ, as folders move."""
        shared = (self.task, self.template, self.mode, dict(self.decoding), dict(self.engine))
        names = ("task", "template", "mode", "decoding", "engine")
        own = {"questions": self.origin["fingerprint"]} if "fingerprint" in self.origin else {}
        return {**dict(zip(names, shared, strict=True)), **own}

    @property
    def hash(self) -> str:
        return short_hash(json.dumps(self.identity, sort_keys=True))


@dataclass
class Predictions:
    """All answers of a task in a run folder."""

    config: RunConfig
    by_id: dict[str, Prediction]
    files: list[Path]


def shard_of(task: str, item_id: str, world_size: int) -> int:
    """The rank that answers an item."""
    return int(short_hash(f"{task}/{item_id}"), 16) % world_size


class PredictionWriter:
    """Appends answers of one task on one rank. Use as a context manager."""

    def __init__(self, folder: Path, config: RunConfig, rank: int = 0, world_size: int = 1):
        """Open or continue the file.

        Raises:
            PredictionError: the folder has answers of this task with another identity, or another process
                is writing this file.
        """
        self.config = config
        self.path = folder / FOLDER / f"{config.task}.{rank}of{world_size}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.answered: dict[str, Prediction] = {}
        """The answers that the folder has already, of all ranks."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            cut_torn_line(self.path)
            present = read_task(folder, config.task)
            if present is not None:
                _check_same(present, config)
                self.answered = present.by_id
            if os.fstat(self._file).st_size == 0:
                self._append([{"config": asdict(config), "config_hash": config.hash}])
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append answers; when this returns, they survive the process."""
        shared = {"config_hash": self.config.hash, "template": self.config.template}
        self._append([{**_compact(prediction), **shared} for prediction in predictions])

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        data = b"".join(to_line(row) for row in rows)
        while data:
            data = data[os.write(self._file, data) :]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PredictionError(
                f"{self.path} is being written by another process: wait for it, or choose another folder"
            ) from None


def read_task(folder: Path, task: str) -> Predictions | None:
    """The union of a task's files; None if there are none with a head.

    Of several answers to an item the last counts, in order of file names, but never an error over an answer.

    Raises:
        PredictionError: a line that is no answer, or files of different identities.
        JsonlError: a line that is no JSON object.
    """
    found: Predictions | None = None
    for path in sorted((folder / FOLDER).glob(f"{task}.*of*.jsonl")):
        rows = read_jsonl(path, ours=True)
        head = next(rows, None)
        if head is None:
            continue
        config = _config_of(path, *head)
        if found is None:
            found = Predictions(config, {}, [])
        else:
            _check_same(found, config)
        found.files.append(path)
        for number, row in rows:
            prediction = _prediction_of(path, number, row)
            known = found.by_id.get(prediction.id)
            if known is None or known.error or not prediction.error:
                found.by_id[prediction.id] = prediction
    return found


def check_identity(folder: Path, config: RunConfig) -> None:
    """Raise PredictionError if the folder has answers of this task with another identity; reads only
    heads."""
    for path in sorted((folder / FOLDER).glob(f"{config.task}.*of*.jsonl")):
        head = next(read_jsonl(path, ours=True), None)
        if head is not None:
            _check_same(Predictions(_config_of(path, *head), {}, [path]), config)


def tasks_of(folder: Path) -> list[str]:
    """Names of the tasks that a run folder has answers of.

    Raises:
        PredictionError: not a run folder.
    """
    names = sorted({path.name.split(".")[0] for path in (folder / FOLDER).glob("*.*of*.jsonl")})
    if not names:
        raise PredictionError(
            f"{folder} has no {FOLDER}/*.jsonl: it is not what `owl2 eval run ... --out {folder}` writes"
        )
    return names


def _config_of(path: Path, number: int, row: Mapping[str, Any]) -> RunConfig:
    try:
        config = RunConfig(**row["config"])
        config.hash  # noqa: B018  (fails where a field is of another type)
        return config
    except (KeyError, TypeError, ValueError) as error:
        raise PredictionError(
            f"{path}:{number}: the first line must be the head that `owl2 eval run` writes ({error})"
        ) from None


def _prediction_of(path: Path, number: int, row: Mapping[str, Any]) -> Prediction:
    known = {key: value for key, value in row.items() if key in Prediction.__dataclass_fields__}
    for key in ("id", "output", "prompt_hash", "error", "prompt"):
        if not isinstance(row.get(key, "" if key in ("error", "prompt") else None), str):
            raise PredictionError(f"{path}:{number}: {key!r} is {row.get(key)!r:.60}, expected text")
    for key in ("prompt_tokens", "new_tokens", "seconds"):
        if not isinstance(row.get(key, 0), int | float):
            raise PredictionError(f"{path}:{number}: {key!r} is {row[key]!r:.60}, expected a number")
    return Prediction(**known)


def _compact(prediction: Prediction) -> dict[str, Any]:
    optional = ("log_likelihoods", "error", "prompt")
    return {key: value for key, value in asdict(prediction).items() if value or key not in optional}


def _check_same(present: Predictions, config: RunConfig) -> None:
    if present.config.hash == config.hash:
        return
    where = present.files[0] if present.files else FOLDER
    old, new = (dict(_flat(one.identity)) for one in (present.config, config))
    if "engine.kind" in old and "engine.tokenizer" not in old and old["engine.kind"] == "owl2":
        raise PredictionError(
            f"{where} was written by a version of owl2 that did not record processor, tokenizer and end "
            f"tokens, so no answers can be added to it: choose another --out, or delete that task's files. "
            f"Scoring, reports and exports of these answers still work"
        )
    changed = [
        f"{key} {_shown(old, key)} -> {_shown(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if key not in old or key not in new or old[key] != new[key]
    ]
    raise PredictionError(
        f"{where} has answers of another model or in another setting ({'; '.join(changed)}): choose another "
        f"--out, or delete that task's files"
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested objects as dotted keys, with values as JSON gives them back."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(value))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return f"{values[key]!r:.60}" if key in values else "(not recorded)"

"""Predictions on disk: one append-only JSONL a task and rank, which a killed run continues.

The first line of `predictions/<task>.<rank>of<world>.jsonl` says how the answers came about; each line behind
it is an answer with the hash of the prompt it answers. A batch is one write, so that what a killed process
leaves is whole lines and at most one torn one, which the next run cuts off. Answers are read as the union of
all files of a task, so the number of ranks may change between runs.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from owl2.errors import Owl2Error

FOLDER = "predictions"


class PredictionError(Owl2Error, ValueError):
    """Predictions that cannot be read or continued; the message names file, line and what to do."""


@dataclass(frozen=True)
class Prediction:
    """One answer."""

    id: str
    output: str
    """What the model wrote, unchanged; in `rank` mode the letter of the likeliest choice."""
    prompt_hash: str
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    """The batch's time divided by its rows."""
    log_likelihoods: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """`rank` mode: letter -> log-likelihood of the choice's text, and its number of tokens."""
    error: str = ""
    """Why the question could not be asked, such as a prompt longer than the context."""


@dataclass(frozen=True)
class RunConfig:
    """How a task's answers came about: the head of each of its files."""

    task: str
    template: str
    mode: str
    decoding: Mapping[str, int]
    engine: Mapping[str, Any]
    """What identifies the model; part of the hash."""
    data: str
    """Folder of the benchmarks, for scoring; not part of the hash, as folders move."""
    source: str
    """Checkpoint or address, as it was given; not part of the hash."""

    @property
    def hash(self) -> str:
        hashed = {key: value for key, value in asdict(self).items() if key not in ("data", "source")}
        return sha256(json.dumps(hashed, sort_keys=True))


@dataclass
class Predictions:
    """All answers of a task in a run folder."""

    config: RunConfig
    by_id: dict[str, Prediction]
    files: list[Path]


def sha256(text: str) -> str:
    """The first 16 hexadecimal digits, enough to tell apart what one run holds."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shard_of(task: str, item_id: str, world_size: int) -> int:
    """The rank that answers an item."""
    return int(sha256(f"{task}/{item_id}"), 16) % world_size


class PredictionWriter:
    """Appends answers of one task on one rank. Use as a context manager."""

    def __init__(self, folder: Path, config: RunConfig, rank: int = 0, world_size: int = 1):
        """Open or continue the file.

        Raises:
            PredictionError: the folder has answers of this task that came about in another way, or
                another process is writing this file.
        """
        self.config = config
        self.path = folder / FOLDER / f"{config.task}.{rank}of{world_size}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.answered: dict[str, Prediction] = {}
        """What the folder has already, of all ranks."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._cut_torn_line()
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
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        while data:
            data = data[os.write(self._file, data) :]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PredictionError(
                f"{self.path} is being written by another process: wait for it, or choose another folder"
            ) from None

    def _cut_torn_line(self) -> None:
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(self._file, data.rfind(b"\n") + 1)


def read_task(folder: Path, task: str) -> Predictions | None:
    """The union of a task's files; None if there are none with a head.

    Of several answers to an item the last counts, in order of file names, but never an error over an answer.

    Raises:
        PredictionError: a line that is no answer, or files that came about in different ways.
    """
    found: Predictions | None = None
    for path in sorted((folder / FOLDER).glob(f"{task}.*of*.jsonl")):
        rows = read_lines(path)
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


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line; a torn last line, which a killed run leaves, is passed over.

    Raises:
        PredictionError: a line before the last, or a whole last one, that is no JSON object.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PredictionError(
                    f"{path}:{number}: not JSON ({error}): repair or delete this line"
                ) from None
            if not isinstance(row, dict):
                raise PredictionError(f"{path}:{number}: holds a {type(row).__name__}, expected an object")
            yield number, row


def _config_of(path: Path, number: int, row: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig(**row["config"])
    except (KeyError, TypeError) as error:
        raise PredictionError(
            f"{path}:{number}: the first line must be the head that `owl2 eval run` writes ({error})"
        ) from None


def _prediction_of(path: Path, number: int, row: Mapping[str, Any]) -> Prediction:
    known = {key: value for key, value in row.items() if key in Prediction.__dataclass_fields__}
    for key in ("id", "output", "prompt_hash"):
        if not isinstance(row.get(key), str):
            raise PredictionError(f"{path}:{number}: {key!r} is {row.get(key)!r:.60}, expected text")
    return Prediction(**known)


def _compact(prediction: Prediction) -> dict[str, Any]:
    optional = ("log_likelihoods", "error")
    return {key: value for key, value in asdict(prediction).items() if value or key not in optional}


def _check_same(present: Predictions, config: RunConfig) -> None:
    if present.config.hash == config.hash:
        return
    old, new = asdict(present.config), asdict(config)
    changed = [
        f"{key} {old[key]!r} -> {new[key]!r}"
        for key in old
        if old[key] != new[key] and key not in ("data", "source")
    ]
    where = present.files[0] if present.files else FOLDER
    raise PredictionError(
        f"{where} has answers that came about in another way ({'; '.join(changed)}): choose another --out, "
        f"or delete that task's files"
    )

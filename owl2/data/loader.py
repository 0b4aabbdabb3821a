"""The micro-batches of a run from any step on, and an account of what could not be used.

A plain `DataLoader` follows the order of `order.py`, as it is or in packs (`packing.py`); its only state is
the step it begins at. Of W workers each makes every W-th micro-batch. A sample that cannot be used leaves a
hole in its batch (never a substitute), is recorded in `bad_samples.jsonl` with its reason, and stops the run
if there are too many. A micro-batch of holes alone is None.
"""

import atexit
import copy
import dataclasses
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ctypes import c_bool
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from owl2.data.dataset import BLANK, Bad, SampleDataset
from owl2.data.readers.base import Source
from owl2.data.sample import DataError
from owl2.model.layout import IGNORE, Layout, Targets, packed_layout, targets_of
from owl2.processor import Encoding, Processor

MIN_BAD_SAMPLES = 10
"""A run is never stopped for so few, whatever their share."""


@dataclass(frozen=True)
class Batch:
    """A packed micro-batch of N tokens and I images."""

    input_ids: Tensor
    """(N,) int64: samples laid end to end."""
    layout: Layout
    targets: Targets
    pixel_values: Tensor
    """(I, 3, H, W) float32."""
    keys: tuple[str, ...]
    """`source:key` of each row's sample; a sample has one row, with `turns: apart` one a question."""
    num_samples: int
    image_of: Tensor | None = None
    """(P,) int64: the image at each of P places in the text; None if each has one place, in this order."""

    def to(self, device: torch.device | str) -> "Batch":
        return dataclasses.replace(
            self,
            input_ids=self.input_ids.to(device),
            layout=self.layout.to(device),
            targets=self.targets.to(device),
            pixel_values=self.pixel_values.to(device),
            image_of=None if self.image_of is None else self.image_of.to(device),
        )


class Sampler(Protocol):
    """Says which draws each micro-batch of a rank has: `StepSampler` or `PackSampler`."""

    @property
    def rank(self) -> int: ...

    @property
    def start_step(self) -> int: ...

    @property
    def steps(self) -> int: ...

    def micro_batches(self, step: int) -> list[list[int]]: ...


MicroBatch = tuple["Batch | None", list[Bad], bool]
"""What can be used, what cannot, and whether this is the last of its step."""


class MicroBatches(IterableDataset[MicroBatch]):
    """The micro-batches of a rank; in a worker process, those of this worker."""

    def __init__(self, dataset: SampleDataset, sampler: Sampler):
        self.dataset = dataset
        self.sampler = sampler
        self.collate = Collate(dataset.processor)

    def __iter__(self) -> Iterator[MicroBatch]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        number = 0
        for step in range(self.sampler.start_step, self.sampler.steps):
            micro_batches = self.sampler.micro_batches(step)
            for place, draws in enumerate(micro_batches, start=1):
                if number % workers == mine:
                    batch, bad = self.collate([self.dataset[n] for n in draws])
                    yield batch, bad, place == len(micro_batches)
                number += 1


class BatchLoader:
    """The micro-batches of a run from a step on; None for one without any usable sample. Iterate once.

    Raises:
        DataError: a source has lost, or (while iterating) the samples that cannot be used are, a larger share
            than `max_bad_fraction`.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        sampler: Sampler,
        *,
        num_workers: int,
        bad_samples: Path,
        max_bad_fraction: float,
        num_drawn: int = 0,
        num_bad: Mapping[str, int] | None = None,
    ):
        """`num_drawn` and `num_bad` (by source) are what was drawn before `sampler.start_step`."""
        self.dataset = dataset
        self.sampler = sampler
        self.is_over = RawValue(c_bool, False)
        self.loader = DataLoader(
            MicroBatches(dataset, sampler),
            batch_size=None,  # MicroBatches makes them
            num_workers=num_workers,
            collate_fn=_unchanged,
            worker_init_fn=partial(_leave_signals_to_the_loop, self.is_over),
            prefetch_factor=4 if num_workers else None,
        )
        self.bad_samples = bad_samples
        self.max_bad_fraction = max_bad_fraction
        self.num_drawn = num_drawn
        self.num_bad: Counter[str] = Counter(num_bad)
        """Samples that could not be used, by source."""
        self.num_questions = 0
        """Questions of used samples that could not be used."""
        self.last_bad: Bad | None = None
        self.num_bad_by_kind: Counter[tuple[str, str]] = Counter()
        """Those and lost files, by source and kind."""
        self.lost = [
            {"source": source.name, "key": file, "kind": "shard is damaged", "reason": reason}
            for source in (dataset.sources if sampler.rank == sampler.start_step == 0 else ())
            for file, reason in source.lost
        ]
        """Files left out, whole or in part: recorded once a run."""
        check_lost(dataset.sources, max_bad_fraction)

    def __iter__(self) -> Iterator[Batch | None]:
        for batch, _ in self.micro_batches():
            yield batch

    def micro_batches(self) -> Iterator[tuple[Batch | None, bool]]:
        """Yield each micro-batch and whether it is the last of its step."""
        atexit.register(self._end)  # if this iterator is never closed, the interpreter ends the workers
        try:
            self._write(self.lost)
            step = self.sampler.start_step + 1
            for batch, bad, is_last in self.loader:
                self.num_drawn += sum(map(is_whole, bad)) + (batch.num_samples if batch else 0)
                if bad:
                    self._record([{**row, "step": step} for row in bad])
                step += is_last
                # A tensor from a worker holds a file open, and a step may hold hundreds of micro-batches.
                yield copy.deepcopy(batch) if self.loader.num_workers else batch, is_last
        finally:
            self._end()

    def _end(self) -> None:
        self.is_over.value = True

    def _write(self, bad: Sequence[Bad]) -> None:
        self.num_bad_by_kind.update((row["source"], row["kind"]) for row in bad)
        if bad:
            with self.bad_samples.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in bad)

    def _record(self, bad: Sequence[Bad]) -> None:
        self._write(bad)
        whole = [row for row in bad if is_whole(row)]
        self.num_bad.update(row["source"] for row in whole)
        self.num_questions += len(bad) - len(whole)
        self.last_bad = bad[-1]
        total = self.num_bad.total()
        if whole and total > max(MIN_BAD_SAMPLES, self.max_bad_fraction * self.num_drawn):
            raise DataError(
                f"{total} of {self.num_drawn} samples could not be used ({dict(self.num_bad)}), more than "
                f"{self.max_bad_fraction:.1%}. The last: {whole[-1]['key']}: {whole[-1]['reason']}. All are "
                f"in {self.bad_samples}; repair them or raise data.max_bad_fraction"
            )


def check_lost(sources: Sequence[Source], max_bad_fraction: float) -> None:
    """Raise DataError if files of a source with more than this share of its samples are left out."""
    for source in sources:
        total = len(source) + source.num_lost
        if source.num_lost > max(MIN_BAD_SAMPLES, max_bad_fraction * total):
            files = "; ".join(reason for _, reason in source.lost[:3])
            raise DataError(
                f"{source.name}: about {source.num_lost:,} of {total:,} samples are lost, more than "
                f"{max_bad_fraction:.1%}; {len(source.lost):,} file(s) are left out whole or in part: "
                f"{files}. Repair them or raise data.max_bad_fraction"
            )


def is_whole(bad: Mapping[str, Any]) -> bool:
    """Whether a record is of a whole sample, not of one question of it."""
    return "question" not in bad


class Collate:
    """Puts encodings end to end into one packed batch; picklable for the loader's workers."""

    def __init__(self, processor: Processor):
        self.processor = processor

    def __call__(self, items: Sequence[tuple[str, Encoding | Bad]]) -> tuple[Batch | None, list[Bad]]:
        good = [(key, item) for key, item in items if isinstance(item, Encoding)]
        bad = [item for _, item in items if isinstance(item, dict)]
        bad += [_lost_question(key, number) for key, encoding in good for number in encoding.blank]
        if not good:
            return None, bad
        ids = torch.tensor([i for _, encoding in good for i in encoding.ids], dtype=torch.int64)
        is_target = torch.tensor([t for _, encoding in good for t in encoding.is_target], dtype=torch.bool)
        rows = [encoding.rows or (len(encoding.ids),) for _, encoding in good]
        layout = packed_layout(
            ids, [length for sample in rows for length in sample], self.processor.image_token_id
        )
        batch = Batch(
            input_ids=ids,
            layout=layout,
            targets=targets_of(ids.masked_fill(~is_target, IGNORE), layout),
            pixel_values=self.processor.pixels([image for _, encoding in good for image in encoding.images]),
            keys=tuple(key for (key, _), sample in zip(good, rows, strict=True) for _ in sample),
            num_samples=len(good),
            image_of=_image_of([encoding for _, encoding in good]),
        )
        return batch, bad


def _lost_question(key: str, number: int) -> Bad:
    reason = f"the answer to question {number} is blank; the others are used"
    return {
        "source": key.partition(":")[0],
        "key": key,
        "kind": BLANK,
        "reason": reason,
        "question": str(number),
    }


def _image_of(encodings: Sequence[Encoding]) -> Tensor | None:
    """Return `Batch.image_of`: each row of a sample shows all its images again."""
    if all(encoding.rows is None for encoding in encodings):
        return None
    places: list[int] = []
    first = 0
    for encoding in encodings:
        images = range(first, first + len(encoding.images))
        places += [*images] * len(encoding.rows or (1,))
        first = images.stop
    return torch.tensor(places, dtype=torch.int64)


def _unchanged(micro_batch: Any) -> Any:
    return micro_batch


def _leave_signals_to_the_loop(is_over: Any, worker: int) -> None:
    """Ignore requests to stop in a worker until the batches are over.

    Schedulers and Ctrl-C signal every process of a run, and the loop still needs the samples of its step.
    """

    def terminate(number: int, _: object) -> None:
        if is_over.value:
            os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

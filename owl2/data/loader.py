"""From the number of a step to its micro-batches: read, open, tokenise, pack.

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
from collections.abc import Collection, Iterator, Mapping, Sequence
from ctypes import c_bool
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from owl2.data.decode import blank_media, open_media
from owl2.data.order import Mixture
from owl2.data.packing import NOTHING, Size
from owl2.data.readers.base import Source
from owl2.data.readers.storage import StorageError
from owl2.data.sample import DataError, Sample, printable
from owl2.data.split_turns import join, split
from owl2.model.layout import IGNORE, Layout, Targets, packed_layout, targets_of
from owl2.processor import Encoding, ImageError, Processor, TemplateError
from owl2.processor.video import VideoError

MIN_BAD_SAMPLES = 10
"""A run is never stopped for so few, whatever their share."""

Bad = dict[str, str]
"""A draw that could not be used: `source`, `key`, `kind` (which faults are counted by) and `reason`."""

UNUSABLE = (DataError, ImageError, TemplateError, VideoError, OSError)
"""What a sample may cause. Any other exception while it is tokenised is a defect of ours and stops the
run."""


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


class SampleDataset:
    """The samples of a run: the number of a draw -> tokens and images, or the reason why not."""

    def __init__(
        self,
        sources: Sequence[Source],
        augmentations: Sequence[str],
        mixture: Mixture,
        processor: Processor,
        max_tokens: int,
        targets: str = "answers",
        num_frames: int = 8,
        turns_apart: Collection[str] = (),
    ):
        self.sources = sources
        self.augmentations = augmentations
        self.mixture = mixture
        self.processor = processor
        self.max_tokens = max_tokens
        self.targets = targets
        self.num_frames = num_frames
        self.turns_apart = turns_apart
        """Names of the sources whose questions do not see each other."""

    def __getitem__(self, n: int) -> tuple[str, Encoding | Bad]:
        draw = self.mixture[n]
        source = self.sources[draw.source]
        key = f"{source.name}:#{draw.index}"
        try:
            sample = _read(source, draw.index)
            key = f"{source.name}:{sample.key}"
            opened = open_media(sample, self.augmentations[draw.source], draw.seed, self.num_frames)
            return key, self._encode(opened, source)
        except UNUSABLE as error:
            reason = printable(f"{type(error).__name__}: {error}")
            return key, {"source": source.name, "key": key, "kind": _kind(error), "reason": reason}
        except Exception as error:
            error.add_note(f"This happened in draw {n}, sample {key}")
            raise

    def size(self, n: int) -> Size:
        """Return the exact size of a draw without opening its images; `NOTHING` if its text is unusable."""
        draw = self.mixture[n]
        source = self.sources[draw.source]
        try:
            encoding = self._encode(blank_media(_read(source, draw.index), self.num_frames), source)
        except UNUSABLE:  # recorded by the rank that reads it
            return NOTHING
        return Size(len(encoding.ids), len(encoding.images))

    def _encode(self, messages: list[dict[str, Any]], source: Source) -> Encoding:
        if source.name in self.turns_apart:
            return join([self._encode_row(question) for question in split(messages)])
        return self._encode_row(messages)

    def _encode_row(self, messages: list[dict[str, Any]]) -> Encoding:
        encoding = self.processor.encode(messages)
        if self.targets == "all":
            encoding = target_all_text(encoding, self.processor.image_token_id)
        return truncate(encoding, self.max_tokens, self.processor.image_token_id)


def _read(source: Source, index: int) -> Sample:
    """Read a sample; whatever is wrong with one row costs that row, unless the storage is at fault."""
    try:
        return source[index]
    except (StorageError, *UNUSABLE):
        raise
    except Exception as error:
        message = f"{source.name}: sample {index} cannot be read: {type(error).__name__}: {error}"
        raise DataError(message, "unreadable row") from error


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
        self.num_bad_by_kind: Counter[tuple[str, str]] = Counter()
        """Those and lost files, by source and kind."""
        self.lost = [
            {"source": source.name, "key": file, "kind": "shard is damaged", "reason": reason}
            for source in (dataset.sources if sampler.rank == sampler.start_step == 0 else ())
            for file, reason in source.lost
        ]
        """Files left out, whole or in part: recorded once a run."""
        self._check_lost()

    def __iter__(self) -> Iterator[Batch | None]:
        for batch, _ in self.micro_batches():
            yield batch

    def micro_batches(self) -> Iterator[tuple[Batch | None, bool]]:
        """Yield each micro-batch and whether it is the last of its step."""
        atexit.register(self._end)  # if this iterator is never closed, the interpreter ends the workers
        try:
            self._write(self.lost)
            for batch, bad, is_last in self.loader:
                self.num_drawn += len(bad) + (batch.num_samples if batch else 0)
                if bad:
                    self._record(bad)
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

    def _check_lost(self) -> None:
        for source in self.dataset.sources:
            total = len(source) + source.num_lost
            if source.num_lost > max(MIN_BAD_SAMPLES, self.max_bad_fraction * total):
                files = "; ".join(reason for _, reason in source.lost[:3])
                raise DataError(
                    f"{source.name}: about {source.num_lost:,} of {total:,} samples are lost, more than "
                    f"{self.max_bad_fraction:.1%}; {len(source.lost):,} file(s) are left out whole or in "
                    f"part: {files}. Repair them or raise data.max_bad_fraction"
                )

    def _record(self, bad: Sequence[Bad]) -> None:
        self._write(bad)
        self.num_bad.update(row["source"] for row in bad)
        total = self.num_bad.total()
        if total > max(MIN_BAD_SAMPLES, self.max_bad_fraction * self.num_drawn):
            raise DataError(
                f"{total} of {self.num_drawn} samples could not be used ({dict(self.num_bad)}), more than "
                f"{self.max_bad_fraction:.1%}. The last: {bad[-1]['key']}: {bad[-1]['reason']}. All are in "
                f"{self.bad_samples}; repair them or raise data.max_bad_fraction"
            )


class Collate:
    """Puts encodings end to end into one packed batch; picklable for the loader's workers."""

    def __init__(self, processor: Processor):
        self.processor = processor

    def __call__(self, items: Sequence[tuple[str, Encoding | Bad]]) -> tuple[Batch | None, list[Bad]]:
        good = [(key, item) for key, item in items if isinstance(item, Encoding)]
        bad = [item for _, item in items if isinstance(item, dict)]
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


def target_all_text(encoding: Encoding, image_token_id: int) -> Encoding:
    """Make every token a target but the first and the visual ones."""
    is_target = [False, *(token != image_token_id for token in encoding.ids[1:])]
    return dataclasses.replace(encoding, is_target=is_target)


def truncate(encoding: Encoding, max_tokens: int, image_token_id: int) -> Encoding:
    """Cut a sample to `max_tokens`, but never through an image and never so that no target is left.

    Raises:
        DataError: no target would be left.
    """
    length = len(encoding.ids)
    if length > max_tokens:
        keep = max_tokens
        num_visual = encoding.ids.count(image_token_id)
        per_image = num_visual // max(1, len(encoding.images))
        kept_visual = encoding.ids[:keep].count(image_token_id)
        if per_image and kept_visual % per_image:
            partial = kept_visual % per_image
            keep = max(i for i in range(keep) if encoding.ids[i] == image_token_id) - partial + 1
            kept_visual -= partial
        images = encoding.images[: kept_visual // per_image if per_image else 0]
        encoding = Encoding(ids=encoding.ids[:keep], is_target=encoding.is_target[:keep], images=images)
    if not any(encoding.is_target[1:]):
        message = f"no labelled token within {max_tokens} of its {length} tokens"
        raise DataError(message, "no answer within the limit")
    return encoding


def _kind(error: Exception) -> str:
    if isinstance(error, DataError):
        return error.kind
    if isinstance(error, FileNotFoundError):
        return "image is missing"
    if isinstance(error, VideoError):
        return "video cannot be read"
    return "unusable conversation" if isinstance(error, TemplateError) else "image cannot be read"


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

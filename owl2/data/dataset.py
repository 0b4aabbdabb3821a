"""Samples of a run as tokens and images: read, open, split, tokenise, cut.

The number of a draw decides everything (order.py), so any worker of any rank can make any sample. Whatever is
wrong with a sample costs that sample: in its place comes the reason, which the loader records and counts.
"""

import dataclasses
import importlib.util
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from owl2.data.order import Mixture
from owl2.data.packing import NOTHING, Size
from owl2.data.readers.base import Source
from owl2.data.readers.storage import StorageError
from owl2.data.sample import DataError, Part, Sample, printable
from owl2.data.split_turns import Messages, join, parts_of, split
from owl2.processor import Encoding, ImageError, Processor, TemplateError
from owl2.processor.video import NoVideoReaderError, VideoError

Bad = dict[str, Any]
"""A draw that could not be used: `source`, `key`, `kind` (which faults are counted by) and `reason`; with
`question`, its number, only one question of a sample that is used otherwise."""

BLANK = "answer is blank"

UNUSABLE = (DataError, ImageError, TemplateError, VideoError, OSError)
"""Faults of a sample. Any other exception while it is tokenised is a defect of ours and stops the run."""

NUM_PROBED = 100
"""Samples of a source that `check_video` looks at."""


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
            messages = sample.open(self.augmentations[draw.source], draw.seed, self.num_frames)
            return key, self._encode(messages, source)
        except NoVideoReaderError:  # no fault of this sample, and no other clip could be read either
            raise
        except UNUSABLE as error:
            reason = printable(f"{type(error).__name__}: {error}")
            return key, {"source": source.name, "key": key, "kind": _kind(error), "reason": reason}
        except Exception as error:
            error.add_note(f"This happened in draw {n}, sample {key}")
            raise

    def open(self, n: int) -> tuple[str, list[Messages]]:
        """Return the key of a draw and its conversations with their images, not augmented.

        Raises:
            Owl2Error, OSError: it cannot be used.
        """
        draw = self.mixture[n]
        source = self.sources[draw.source]
        sample = _read(source, draw.index)
        messages = sample.open("none", draw.seed, self.num_frames)
        return f"{source.name}:{sample.key}", self.conversations(messages, source)[0]

    def size(self, n: int) -> Size:
        """Return the exact size of a draw without opening its images; `NOTHING` if its text is unusable."""
        draw = self.mixture[n]
        source = self.sources[draw.source]
        try:
            encoding = self._encode(_read(source, draw.index).blank(self.num_frames), source)
        except UNUSABLE:  # recorded by the rank that reads it
            return NOTHING
        return Size(len(encoding.ids), len(encoding.images))

    def conversations(self, messages: Messages, source: Source) -> tuple[list[Messages], tuple[int, ...]]:
        """Return what a sample's messages are learned as: one conversation, or one a question; and the
        numbers of the questions without an answer, which are in none of them.

        Raises:
            DataError: every answer is blank.
        """
        answered, blank = without_blank_answers(messages)
        return split(answered) if source.name in self.turns_apart else [answered], blank

    def _encode(self, messages: Messages, source: Source) -> Encoding:
        rows, blank = self.conversations(messages, source)
        return dataclasses.replace(join([self._encode_row(row) for row in rows]), blank=blank)

    def _encode_row(self, messages: Messages) -> Encoding:
        encoding = self.processor.encode(messages)
        if self.targets == "all":
            encoding = target_all_text(encoding, self.processor.image_token_id)
        if self.targets == "last":
            encoding = target_last_answer(encoding)
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


def target_all_text(encoding: Encoding, image_token_id: int) -> Encoding:
    """Make every token a target but the first and the visual ones."""
    is_target = [False, *(token != image_token_id for token in encoding.ids[1:])]
    return dataclasses.replace(encoding, is_target=is_target)


def target_last_answer(encoding: Encoding) -> Encoding:
    """Keep only the targets of the last answer and its end token."""
    begins = [
        n for n, (before, flag) in enumerate(pairwise([False, *encoding.is_target])) if flag and not before
    ]
    begin = begins[-1] if begins else 0
    return dataclasses.replace(encoding, is_target=[False] * begin + encoding.is_target[begin:])


def without_blank_answers(messages: Messages) -> tuple[Messages, tuple[int, ...]]:
    """Return the conversation without the questions whose answers are blank, and their numbers from 1.

    The images of such a question go to the next one.

    Raises:
        DataError: every answer is blank.
    """
    first = int(bool(messages) and messages[0]["role"] == "system")
    pairs = [messages[n : n + 2] for n in range(first, len(messages), 2)]
    blank = tuple(n for n, pair in enumerate(pairs, start=1) if len(pair) == 2 and _is_blank(pair[1]))
    if not blank:
        return messages, ()
    if len(blank) == len(pairs):
        raise DataError(f"all {len(blank)} answers are blank", BLANK)
    kept, carried = messages[:first], list[Part]()
    for number, (question, *answer) in enumerate(pairs, start=1):
        parts = [*carried, *parts_of(question)]
        if number in blank:
            carried = [part for part in parts if part["type"] != "text"]
        else:
            kept += [{**question, "content": parts} if carried else question, *answer]
            carried = []
    return kept, blank


def _is_blank(answer: dict[str, Any]) -> bool:
    return all(part["type"] == "text" and not part["text"].strip() for part in parts_of(answer))


def check_video(source: Source) -> None:
    """Raise DataError if a source has videos, and the package that reads them is missing.

    Up to NUM_PROBED samples are looked at, evenly spread.
    """
    if importlib.util.find_spec("av") is not None:
        return
    for index in range(0, len(source), -(-len(source) // NUM_PROBED)):
        try:
            sample = source[index]
        except Exception:  # counted when it is drawn
            continue
        clips = [part["video"].name for part in sample.parts() if part["type"] == "video"]
        if any(not name.lower().endswith(".gif") for name in clips):
            raise DataError(
                f"{source.name}: sample {sample.key} has the video {clips[0]}; reading videos needs the "
                f"package av: pip install 'owl2[video]'"
            )


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

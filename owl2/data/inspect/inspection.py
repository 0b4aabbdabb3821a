"""Content of a source, measured on the path that training takes: `owl2 data inspect`.

Samples come from the loader's own dataset (order, image opening, augmentation, template, truncation), so what
is counted and shown is what a model would see, broken samples included. Without a checkpoint, bytes are
counted in place of tokens.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from owl2.data.dataset import Bad, SampleDataset
from owl2.data.order import Draw, Mixture, Permutation
from owl2.data.readers.base import LostFile, Source
from owl2.data.sample import DataError
from owl2.processor import Encoding, ImageTransform, Processor

NUM_BUCKETS = 24


class ByteTokenizer:
    """Bytes as tokens, for sources that are inspected without a checkpoint."""

    bos_token_id: int | None = 256
    eos_token_id = 257
    pad_token_id = 257
    vocab_size = 258
    add_bos = True
    dummy_space = False
    end_strips = (False, False)

    def encode(self, text: str, *, space: bool = False, after_end: bool = False) -> list[int]:
        return list((" " * space + text).encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        raise NotImplementedError(f"a tokenizer of bytes has no files to write to {folder}")


def byte_processor() -> Processor:
    """Return a processor for inspection without a model: bytes, images of 224 px and 65 tokens."""
    return Processor(ByteTokenizer(), ImageTransform(224), image_token_id=-200, tokens_per_image=65)


class EachOnce(Mixture):
    """Every sample of one source once, in random order.

    A `Mixture` of one small source goes through many passes within a block.
    """

    def __init__(self, size: int, seed: int):
        super().__init__([size], [1.0], seed)
        self.permutation = Permutation(size, seed)

    def __getitem__(self, n: int) -> Draw:
        return Draw(0, self.permutation(n), n)


@dataclass(frozen=True)
class Piece:
    """A token of a sample as it is shown."""

    text: str
    """The token's text, or a whole character's if tokens are parts of it; empty for an image."""
    is_target: bool
    image: int | None = None
    """Number of the image at this place."""
    is_end: bool = False


@dataclass(frozen=True)
class Shown:
    """A sample as the model sees it."""

    key: str
    images: list[Image.Image]
    """After augmentation, at the model's size."""
    pieces: list[Piece]
    num_tokens: int
    num_targets: int


@dataclass
class Inspection:
    """Figures and examples of a source."""

    name: str
    unit: str
    """`tokens`, or `bytes` without a checkpoint."""
    num_samples: int
    num_incomplete: int
    lost: list[LostFile]
    lost_share: float
    max_tokens: int
    lengths: list[int] = field(default_factory=list)
    """Tokens of each opened sample, visual ones included."""
    num_targets: int = 0
    num_visual: int = 0
    num_cut: int = 0
    """Samples at the limit of `max_tokens`."""
    num_blank: int = 0
    """Questions that are left out because their answers are blank."""
    shapes: Counter[str] = field(default_factory=Counter)
    """Opened samples by their number of images."""
    bad: list[Bad] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    @property
    def num_opened(self) -> int:
        return len(self.lengths) + len(self.bad)

    def check(self) -> None:
        """Raise DataError if no sample that was opened can be used."""
        if self.bad and not self.lengths:
            first = self.bad[0]
            raise DataError(
                f"{self.name}: none of {len(self.bad):,} samples can be used; the first, {first['key']}: "
                f"{first['reason']}"
            )

    def quantile(self, share: float) -> int:
        """Return the length that this share of the opened samples does not exceed."""
        ordered = sorted(self.lengths)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0

    def histogram(self) -> list[tuple[int, int, int]]:
        """Return (first length, last length, samples) of equal steps from the shortest to the longest."""
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        step = max(1, -(-(high - low + 1) // NUM_BUCKETS))
        counts = Counter((length - low) // step for length in self.lengths)
        buckets = range((high - low) // step + 1)
        return [(low + n * step, min(high, low + (n + 1) * step - 1), counts[n]) for n in buckets]


def inspect_source(
    source: Source,
    processor: Processor | None = None,
    *,
    template: str | None = None,
    augmentation: str = "none",
    max_tokens: int = 2048,
    num_opened: int = 1000,
    num_shown: int = 24,
    seed: int = 0,
) -> Inspection:
    """Open `num_opened` random samples without repetition, and keep `num_shown` of them to look at.

    Args:
        source: what training would read.
        processor: a checkpoint's; None to count bytes.
        template: None for the processor's own.
        augmentation: as a stage's `augment`.
        max_tokens: longer samples are cut, as in training.
        num_opened: 0 for all.
        num_shown: of those that can be used.
        seed: of the random order.
    """
    unit = "bytes" if processor is None else "tokens"
    # As in training: no limit of its own, the loader cuts to max_tokens.
    processor = (processor or byte_processor()).replace(template=template).without_limit()
    dataset = SampleDataset([source], [augmentation], EachOnce(len(source), seed), processor, max_tokens)
    return inspect_dataset(dataset, num_opened, num_shown, unit)


def inspect_dataset(
    dataset: SampleDataset, num_opened: int, num_shown: int, unit: str = "tokens"
) -> Inspection:
    """Open the first `num_opened` samples (0: all) of a dataset of one source, as `inspect_source` does."""
    (source,), processor, max_tokens = dataset.sources, dataset.processor, dataset.max_tokens
    count = min(num_opened or len(source), len(source))
    found = Inspection(
        name=source.name,
        unit=unit,
        num_samples=len(source),
        num_incomplete=source.num_incomplete,
        lost=[*source.lost],
        lost_share=source.lost_share,
        max_tokens=max_tokens,
    )
    for n in range(count):
        key, item = dataset[n]
        if not isinstance(item, Encoding):
            found.bad.append(item)
            continue
        visual = item.ids.count(processor.image_token_id)
        found.lengths.append(len(item.ids))
        found.num_targets += sum(item.is_target)
        found.num_visual += visual
        found.num_cut += len(item.ids) >= max_tokens
        found.num_blank += len(item.blank)
        found.shapes[_shape(len(item.images))] += 1
        if len(found.shown) < num_shown:  # the order is random, so the first ones are a fair choice
            found.shown.append(show(key, item, processor))
    return found


def show(key: str, encoding: Encoding, processor: Processor) -> Shown:
    """Return a sample as images at the model's size and pieces of text."""
    return Shown(
        key=key,
        images=[image_of(processor, image) for image in encoding.images],
        pieces=pieces_of(encoding, processor),
        num_tokens=len(encoding.ids),
        num_targets=sum(encoding.is_target),
    )


def image_of(processor: Processor, image: Image.Image) -> Image.Image:
    """Return the pixels that the vision encoder gets, as an image again."""
    transform = processor.image_transform
    pixels = transform(image).permute(1, 2, 0).numpy() * transform.std + transform.mean  # (H, W, 3)
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype("uint8"))


def pieces_of(encoding: Encoding, processor: Processor) -> list[Piece]:
    """Return the tokens of a sample as pieces: whole characters, and one piece for an image."""
    pieces: list[Piece] = []
    rest, num_visual = b"", 0
    for token_id, is_target in zip(encoding.ids, encoding.is_target, strict=True):
        if token_id == processor.image_token_id:
            if num_visual % processor.tokens_per_image == 0:
                pieces.append(Piece("", False, image=num_visual // processor.tokens_per_image))
            num_visual += 1
        elif token_id == processor.tokenizer.eos_token_id:
            pieces.append(Piece("", is_target, is_end=True))
        else:
            rest += processor.tokenizer.token_bytes(token_id)
            text = rest.decode("utf-8", errors="replace")
            if "\N{REPLACEMENT CHARACTER}" in text and len(rest) < 4:
                continue  # a character whose other bytes are in the next tokens
            rest = b""
            if text:
                pieces.append(Piece(text, is_target))
    return pieces


def _shape(num_images: int) -> str:
    return {0: "text alone", 1: "with 1 image"}.get(num_images, f"with {num_images} images")

"""How full packs of the instruction mixture are, and how even the work of ranks is, with packs and without.

Lengths are sampled from log-normal distributions in the shares of Table 14. Means and spreads are estimates
from what is published of each corpus (questions an image, turns, words an answer), in LLaMA tokens of text;
an image is 65 tokens more. The number of samples a step is Table 15's.

    python -m bench.packing [--samples 256] [--steps 200]
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jsonargparse

from owl2.data.packing import Size, deal, pack

LIMIT = 2048
"""`data.max_tokens` of owl2/configs/instruct.yaml."""
IMAGE_TOKENS = 65


@dataclass(frozen=True)
class Corpus:
    """Lengths of one corpus."""

    weight: float
    """Thousands of samples in Table 14."""
    mean: float
    """Of the tokens of its text, template included."""
    spread: float
    """Standard deviation of their logarithm."""
    images: int = 1

    def random_size(self, rng: random.Random) -> Size:
        """Return the size of a random sample."""
        text = rng.lognormvariate(math.log(self.mean) - self.spread**2 / 2, self.spread)
        return Size(min(LIMIT, max(30, round(text)) + IMAGE_TOKENS * self.images), self.images)


CORPORA = [
    Corpus(40, 1400, 0.9, images=0),  # ShareGPT: several turns, half of the conversations are cut
    Corpus(518, 420, 0.7, images=0),  # SlimOrca: system text, a question with its context, a reasoned answer
    Corpus(158, 260, 0.5),  # LLaVA: conversations, descriptions, reasoning
    Corpus(82, 65, 0.15),  # COCO captions
    Corpus(22, 68, 0.2),  # TextCaps
    Corpus(83, 170, 0.5),  # VQAv2: 5.4 questions an image
    Corpus(72, 350, 0.6),  # GQA: 13 questions an image
    Corpus(9, 75, 0.2),  # OKVQA
    Corpus(80, 170, 0.3),  # OCR-VQA: 4 to 5 questions a cover
    Corpus(50, 110, 0.2),  # A-OKVQA
    Corpus(30, 420, 0.5),  # RefCOCO, + and g: up to ten referents
    Corpus(86, 500, 0.05),  # Visual Genome: ten regions
]


def random_step(rng: random.Random, samples: int) -> list[Size]:
    """The sizes of a step's samples."""
    chosen = rng.choices(CORPORA, [corpus.weight for corpus in CORPORA], k=samples)
    return [corpus.random_size(rng) for corpus in chosen]


def plain(sizes: Sequence[Size], ranks: int) -> list[list[list[int]]]:
    """What `StepSampler` gives each rank: every n-th sample of n ranks, here in micro-batches of eight."""
    mine = [list(range(rank, len(sizes), ranks)) for rank in range(ranks)]
    return [[numbers[n : n + 8] for n in range(0, len(numbers), 8)] for numbers in mine]


def evenness(sizes: Sequence[Size], dealt: list[list[list[int]]], field: int) -> tuple[float, float]:
    """Largest over mean of what ranks get in a step, and of what they compute at the same time."""

    def load(members: Sequence[int]) -> int:
        return sum(sizes[i][field] for i in members)

    totals = [sum(map(load, packs)) for packs in dealt]
    rows = [[load(members) for members in row] for row in zip(*dealt, strict=True)]
    return max(totals) * len(totals) / sum(totals), sum(map(max, rows)) * len(dealt) / sum(totals)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(samples: int = 256, steps: int = 200) -> None:
    """Print both tables.

    Args:
        samples: of a step.
        steps: to average over.
    """
    all_sizes = [random_step(random.Random(number), samples) for number in range(steps)]
    tokens = mean([size.tokens for sizes in all_sizes for size in sizes])
    print(f"{steps} steps of {samples} samples, {tokens:.0f} tokens a sample on average\n")
    print("full, of pack_tokens, on one rank")
    for capacity in (2048, 4096, 8192, 16384):
        began = time.process_time()
        packs = [pack(sizes, capacity) for sizes in all_sizes]
        seconds = time.process_time() - began
        full = sum(size.tokens for sizes in all_sizes for size in sizes) / (capacity * sum(map(len, packs)))
        print(f"  {capacity:>6}  {full:.1%}  {1000 * seconds / steps:.1f} ms a step")
    print("\nlargest over mean of the ranks: in a step / of what is computed at the same time")
    print("  ranks  order   tokens         images")
    for ranks in (2, 4, 8, 16):
        in_packs = [deal(sizes, pack(sizes, 4096, ranks), ranks) for sizes in all_sizes]
        for name, dealt in (("plain", [plain(sizes, ranks) for sizes in all_sizes]), ("packed", in_packs)):
            columns = []
            for field in (0, 1):
                pairs = [
                    evenness(sizes, of_step, field) for sizes, of_step in zip(all_sizes, dealt, strict=True)
                ]
                columns.append(" / ".join(f"{mean(values):.3f}" for values in zip(*pairs, strict=True)))
            print(f"  {ranks:>5}  {name:6}  {'  '.join(columns)}")


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)

"""CIDEr-D (Vedantam et al. 2015), the score of captions, as coco-caption computes it, without Java.

A caption is a vector of its 1- to 4-grams, weighted by how few images have them. A candidate's score is the
clipped cosine with each reference, reduced by their difference in length. The weights come from the evaluated
references themselves, so a subset of the images gives another metric, and a single image scores 0. To
resample images, keep one `Cider` and resample its scores.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from owl2.eval.metrics.ptb import tokenize

MAX_N = 4
SIGMA = 6.0
"""Width of the length penalty, in words."""

Gram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A caption: weights of its n-grams for each n, their norms, and its number of bigrams, the released
    code's length."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    length: int


class Cider:
    """The references of a set of images, with the document frequencies of their n-grams.

    Raises:
        ValueError: an image without references; the message has its place.
    """

    def __init__(self, references: Sequence[Sequence[str]]):
        for place, captions in enumerate(references):
            if not captions:
                raise ValueError(f"CIDEr: image {place} of {len(references)} has no reference captions")
        counted = [[_count(caption) for caption in captions] for captions in references]
        self._frequency = Counter(gram for captions in counted for gram in set().union(*captions))
        self._log_images = math.log(max(1, len(counted)))
        self._references = [[self._weigh(grams) for grams in captions] for captions in counted]

    def scores(self, candidates: Sequence[str]) -> list[float]:
        """Score of a caption for each image, in the order of the references; papers print the mean x 100.

        Raises:
            ValueError: candidates and images are not equally many.
        """
        if len(candidates) != len(self._references):
            raise ValueError(f"CIDEr: {len(candidates)} captions for {len(self._references)} images")
        return [
            self._score(self._weigh(_count(candidate)), captions)
            for candidate, captions in zip(candidates, self._references, strict=True)
        ]

    def _weigh(self, grams: Counter[Gram]) -> _Vector:
        weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(MAX_N))
        for gram, count in grams.items():
            rarity = self._log_images - math.log(max(1, self._frequency[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        norms = tuple(math.sqrt(sum(weight**2 for weight in of_n.values())) for of_n in weights)
        return _Vector(weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2))

    @staticmethod
    def _score(candidate: _Vector, references: Sequence[_Vector]) -> float:
        total = 0.0
        for reference in references:
            penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(_cosine(candidate, reference, n) for n in range(MAX_N)) / MAX_N
        return 10.0 * total / len(references)


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of one caption for each image against its references; tokenises inside.

    Raises:
        ValueError: candidates and images are not equally many, or an image has no references.
    """
    return Cider(references).scores(candidates)


def _count(caption: str) -> Counter[Gram]:
    words = tokenize(caption)
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_N + 1) for start in range(len(words) - n + 1)
    )


def _cosine(candidate: _Vector, reference: _Vector, n: int) -> float:
    """Cosine of the n-grams' weights, the candidate's clipped to the reference's."""
    ours, theirs = candidate.weights[n], reference.weights[n]
    clipped = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
    norms = candidate.norms[n] * reference.norms[n]
    return clipped / norms if norms else clipped

"""Yes or no: how MME and POPE read an answer, and their scores.

Both readings are the benchmarks' own, odd as they are: MME looks at the first four characters, and POPE takes
everything for "yes" that has no "no" or "not" in its first sentence. POPE's figures are those of the class
"yes" (Table 9); MME adds, for each subtask, the percentages of right answers and of images with two of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

MmeVariant = Literal["official", "lmms"]
"""lmms (lmms-eval, after Otter) removes periods and also reads a lone "y" or "n"."""


def mme_answer(output: str, variant: MmeVariant = "official") -> str | None:
    """MME's reading: "yes", "no", or None, which is wrong."""
    text = output.lower().strip()
    if variant == "lmms":
        text = text.replace(".", "")
        if text in ("y", "n"):
            return {"y": "yes", "n": "no"}[text]
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def pope_answer(output: str) -> str:
    """POPE's reading: "no" if the first sentence has the word No, no or not, else "yes".

    Words are separated by blanks only, not by line breaks, as in the official script.
    """
    words = output.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


@dataclass(frozen=True)
class BinaryScores:
    """Figures of the class "yes", 0 to 1; 0 where no prediction or no label is "yes"."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    """Share of predictions, not of labels, that are "yes"."""


def binary_scores(predicted: Sequence[str], labels: Sequence[str]) -> BinaryScores:
    """POPE's five figures.

    Raises:
        ValueError: no questions, another number of labels, or a word other than yes and no.
    """
    if len(predicted) != len(labels) or not labels:
        raise ValueError(
            f"{len(predicted)} predictions for {len(labels)} labels; give one for each, at least one"
        )
    strange = (set(predicted) | set(labels)) - {"yes", "no"}
    if strange:
        raise ValueError(f"only yes and no can be scored, not {', '.join(map(repr, sorted(strange)))}")
    pairs = list(zip(predicted, labels, strict=True))
    true_yes = pairs.count(("yes", "yes"))
    said_yes, is_yes = predicted.count("yes"), labels.count("yes")
    return BinaryScores(
        accuracy=sum(said == label for said, label in pairs) / len(pairs),
        precision=true_yes / said_yes if said_yes else 0.0,
        recall=true_yes / is_yes if is_yes else 0.0,
        f1=2 * true_yes / (said_yes + is_yes) if said_yes + is_yes else 0.0,
        yes_ratio=said_yes / len(pairs),
    )


@dataclass(frozen=True)
class MmeScore:
    """One subtask of MME."""

    accuracy: float
    """Share of questions answered right, 0 to 1."""
    accuracy_plus: float
    """Share of images both of whose questions are answered right, 0 to 1."""

    @property
    def score(self) -> float:
        """The score that MME prints: 0 to 200."""
        return 100 * (self.accuracy + self.accuracy_plus)


def mme_score(right: Mapping[str, Sequence[bool]]) -> MmeScore:
    """Score of one subtask from whether each image's two answers are right.

    Raises:
        ValueError: no images, or one without exactly two questions; the message has its name.
    """
    if not right:
        raise ValueError("MME: a subtask without images")
    for image, answers in right.items():
        if len(answers) != 2:
            raise ValueError(
                f"MME: image {image} has {len(answers)} answers; the benchmark asks 2 of each image"
            )
    return MmeScore(
        accuracy=sum(map(sum, right.values())) / (2 * len(right)),
        accuracy_plus=sum(map(all, right.values())) / len(right),
    )

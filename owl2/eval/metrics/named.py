"""Metrics by name, for questions of one's own: how an answer is read, and what it is worth.

A metric is a class, registered by the decorator `@metric`. Those here build on the official metrics of this
package. They never guess: an answer that can be read in two ways is wrong.
"""

import difflib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from owl2.errors import Owl2Error
from owl2.eval.metrics.choice import parse_choice
from owl2.eval.metrics.cider import cider_d
from owl2.eval.metrics.vqa import normalise, vqa_accuracy
from owl2.eval.task import Answer, Item
from owl2.registry import Registry

LONG = 6
"""Words from which on a reference is a sentence, which no answer repeats word for word."""
MANY = 10
"""References from which on they are the answers of as many people, as in VQA."""
TOLERANCE = 0.05
"""Of ChartQA's relaxed accuracy."""
_NUMBER = re.compile(
    r"(?:(?<![\w.])[-+−])?(?:\d+(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+(?:e[-+]?\d+)?)", re.IGNORECASE
)
_YES = {"yes": "yes", "true": "yes", "no": "no", "false": "no", "not": "no"}


class UnknownMetric(Owl2Error, ValueError):
    """No metric has this name; the message has the nearest one."""


class Metric(ABC):
    """What answers to some questions are worth."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The name of the figure in reports."""
    is_share: ClassVar[bool] = True
    """Whether an answer is worth 0 to 1."""

    def parse(self, item: Item, output: str) -> str | None:
        """The answer in the model's words; None where none can be read."""
        return output.strip() or None

    def needs(self, item: Item) -> str:
        """What a question lacks for this metric; empty if it can be scored."""
        return "" if item.references else "references"

    @abstractmethod
    def values(self, answers: Sequence[Answer]) -> list[float]:
        """The worth of each answer; their mean times 100 is the figure."""


METRICS: Registry[Metric] = Registry("metric", "owl2.eval.metrics", "owl2.metrics")
metric = METRICS.add
"""Register a metric under its name; the decorator of its class."""


def find_metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        UnknownMetric: there is none.
    """
    metrics = METRICS.all()
    if name not in metrics:
        near = difflib.get_close_matches(name, metrics, n=1, cutoff=0)[0]
        raise UnknownMetric(f"no metric {name!r}; nearest is {near!r} of {', '.join(metrics)}")
    return metrics[name]()


def metric_for(item: Item) -> str:
    """The metric that the form of a question asks for; empty without references."""
    if not item.references:
        return ""
    if item.choices:
        return "choice"
    if all(reference.strip().lower() in _YES for reference in item.references):
        return "yes_no"
    if all(_as_number(reference) is not None for reference in item.references):
        return "number"
    words = sum(len(reference.split()) for reference in item.references) / len(item.references)
    if words >= LONG:
        return "cider" if len(item.references) > 1 else "f1"
    return "vqa" if len(item.references) >= MANY else "exact"


class AnswerMetric(Metric):
    """A metric that looks at one answer after the other; one that could not be read is worth 0."""

    @abstractmethod
    def value(self, said: str, item: Item) -> float:
        """What a readable answer is worth, 0 to 1."""

    def values(self, answers: Sequence[Answer]) -> list[float]:
        return [
            0.0 if answer.parsed is None else self.value(answer.parsed, answer.item) for answer in answers
        ]


@metric
class Exact(AnswerMetric):
    """Equal to a reference, as EvalAI compares: without case, articles and marks, numbers as digits."""

    name = "exact"
    title = "exact match"

    def value(self, said: str, item: Item) -> float:
        return float(_plain(said) in map(_plain, item.references))


@metric
class Contains(AnswerMetric):
    """Has all words of a reference, in its order and next to each other."""

    name = "contains"
    title = "contains the answer"

    def value(self, said: str, item: Item) -> float:
        words = f" {_plain(said)} "
        return float(
            any(_plain(reference) and f" {_plain(reference)} " in words for reference in item.references)
        )


@metric
class F1(AnswerMetric):
    """Words in common with the most similar reference: precision and recall's harmonic mean, as in SQuAD."""

    name = "f1"
    title = "word F1"

    def value(self, said: str, item: Item) -> float:
        return max(_f1(_plain(said).split(), _plain(reference).split()) for reference in item.references)


@metric
class Vqa(AnswerMetric):
    """VQA accuracy, as LAVIS computes it: agreement with several people's answers."""

    name = "vqa"
    title = "VQA accuracy (lavis)"

    def value(self, said: str, item: Item) -> float:
        return vqa_accuracy(said, item.references, "lavis")


@metric
class YesNo(AnswerMetric):
    """Yes or no (true or false): the answer's first word, else the only one of them in its first sentence."""

    name = "yes_no"
    title = "yes or no"

    def parse(self, item: Item, output: str) -> str | None:
        words = re.findall(r"\w+", re.split(r"[.!?\n]", output.strip().lower())[0])
        said = list(dict.fromkeys(_YES[word] for word in words if word in _YES))
        return said[0] if len(said) == 1 or (said and words[0] in _YES) else None

    def needs(self, item: Item) -> str:
        return (
            "" if item.references and all(r.strip().lower() in _YES for r in item.references) else "yes or no"
        )

    def value(self, said: str, item: Item) -> float:
        return float(said in {_YES[reference.strip().lower()] for reference in item.references})


@metric
class Choice(AnswerMetric):
    """The letter that the answer claims, or the option whose text it has."""

    name = "choice"
    title = "right choice"

    def parse(self, item: Item, output: str) -> str | None:
        return parse_choice(output, item.choices)

    def needs(self, item: Item) -> str:
        return "" if item.references and item.choices else "choices and an answer"

    def value(self, said: str, item: Item) -> float:
        return float(said in item.references)


@metric
class Number(AnswerMetric):
    """The only number in the answer, equal to a reference, or within the row's `tolerance`."""

    name = "number"
    title = "right number"

    def parse(self, item: Item, output: str) -> str | None:
        numbers = {_as_number(text) for text in _NUMBER.findall(_digits(output))}
        return f"{numbers.pop():.12g}" if len(numbers) == 1 else None

    def needs(self, item: Item) -> str:
        are_numbers = [_as_number(reference) is not None for reference in item.references]
        return "" if are_numbers and all(are_numbers) else "a number"

    def value(self, said: str, item: Item) -> float:
        rights = [_as_number(reference) for reference in item.references]
        return float(any(self.is_close(float(said), right, item) for right in rights if right is not None))

    def is_close(self, said: float, right: float, item: Item) -> bool:
        """Whether a number is right."""
        return abs(said - right) <= max(1e-9 * abs(right), float(item.extra.get("tolerance", 0.0)))


@metric
class Relaxed(Number):
    """The only number in the answer, within 5 % of a reference, as ChartQA counts."""

    name = "relaxed"
    title = "number within 5 %"

    def is_close(self, said: float, right: float, item: Item) -> bool:
        return abs(said - right) <= TOLERANCE * abs(right)


@metric
class Cider(Metric):
    """CIDEr-D of captions; its word weights come from the references of all questions."""

    name = "cider"
    title = "CIDEr"
    is_share = False

    def values(self, answers: Sequence[Answer]) -> list[float]:
        return cider_d([a.parsed or "" for a in answers], [a.item.references for a in answers])


def _plain(text: str) -> str:
    """As EvalAI compares, in any script."""
    return normalise(unicodedata.normalize("NFKC", text).strip().strip(".,;:!?。、\"'").casefold(), "evalai")


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def _digits(text: str) -> str:
    """Number words up to ten as digits."""
    return re.sub(r"[^\W\d_]+", lambda word: normalise(word[0], "evalai"), text)


def _as_number(text: str) -> float | None:
    """The number that a text is, as 3, 1,200.5 or -2e3; None if it is none."""
    text = _digits(text.strip().rstrip(".%").strip())
    return float(text.replace(",", "").replace("−", "-")) if _NUMBER.fullmatch(text) else None

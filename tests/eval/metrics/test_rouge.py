"""ROUGE: the four figures of a summary."""

import pytest

from owl2.eval.metrics.rouge import METRICS, rouge

pytest.importorskip("rouge_score")


def test_the_figures_are_what_counting_gives() -> None:
    found = rouge("the cat sat", ["the cat ran off"])
    assert tuple(found) == METRICS
    assert found["rouge1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["rouge2"] == pytest.approx(2 * 1 / (2 + 3))
    assert found["rougeL"] == found["rougeLsum"] == pytest.approx(4 / 7)


def test_words_are_not_stemmed_and_case_does_not_count() -> None:
    assert rouge("Cats", ["cat"])["rouge1"] == 0
    assert rouge("CAT", ["cat"])["rouge1"] == 1


def test_the_best_reference_counts() -> None:
    assert rouge("a cat", ["dogs", "a cat"])["rougeL"] == 1


def test_an_empty_summary_scores_nothing() -> None:
    assert set(rouge("", ["a cat"]).values()) == {0}


def test_no_reference_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        rouge("a cat", [])

"""CIDEr-D: values worked out by hand, and what its corpus weights mean for subsets."""

import math

import pytest

from owl2.eval.metrics.cider import Cider, cider_d

REFERENCES = [
    ["a cat sits on a mat", "the cat is on the mat"],
    ["a dog runs in the park", "dogs run"],
    ["two birds fly over water", "birds fly"],
]


def test_a_caption_equal_to_its_only_reference_scores_ten() -> None:
    assert cider_d(
        ["a red cat sits", "one dog runs there"], [["a red cat sits"], ["one dog runs there"]]
    ) == [
        pytest.approx(10),
        pytest.approx(10),
    ]


def test_a_score_is_what_the_formula_gives_by_hand() -> None:
    # Two images; all words occur at one image, weight log 2. The 1-grams have cosine 2 / sqrt(2 * 3), the
    # 2-grams 1 / sqrt(1 * 2), longer ones 0; the candidate has one bigram less.
    expected = 10 * math.exp(-1 / 72) * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4
    found = cider_d(["red cat", "blue dog"], [["red cat sits"], ["green birds"]])
    assert found == [pytest.approx(expected), 0]


def test_repeating_a_word_is_clipped_to_the_reference() -> None:
    once, often = (cider_d([text, "x"], [["red cat"], ["y"]])[0] for text in ("red cat", "red red red cat"))
    assert often < once


def test_words_of_every_image_weigh_nothing() -> None:
    assert cider_d(["a", "a"], [["a"], ["a"]]) == [0, 0]


def test_a_single_image_scores_nothing() -> None:
    assert cider_d(["a red cat sits"], [["a red cat sits"]]) == [0]


def test_a_kept_corpus_gives_each_caption_the_score_of_the_whole() -> None:
    candidates = ["a cat on a mat", "a dog runs", "birds fly over the sea"]
    corpus = Cider(REFERENCES)
    whole = corpus.scores(candidates)
    assert whole == cider_d(candidates, REFERENCES)
    assert corpus.scores(["nothing", *candidates[1:]])[1:] == whole[1:]
    assert cider_d(candidates[:2], REFERENCES[:2]) != whole[:2]


def test_captions_are_cut_into_words_first() -> None:
    plain = cider_d(["a cat sits on a mat", "dogs run", "birds"], REFERENCES)
    assert cider_d(["A cat sits, on a mat!", "Dogs run...", '"Birds"'], REFERENCES) == plain


def test_an_empty_caption_scores_nothing() -> None:
    assert cider_d(["", "", ""], REFERENCES) == [0, 0, 0]


def test_an_image_without_references_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="image 1 of 2 has no reference"):
        cider_d(["a", "b"], [["a"], []])


def test_each_image_has_one_caption() -> None:
    with pytest.raises(ValueError, match="2 captions for 3 images"):
        cider_d(["a", "b"], REFERENCES)

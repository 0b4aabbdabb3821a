"""The split is what `scenes.py` says it is, and what is asked about a scene is true of it."""

from collections import Counter
from itertools import combinations
from random import Random

import pytest

from owl2.demo.world.captions import caption, describe, place
from owl2.demo.world.questions import qas, yes_no
from owl2.demo.world.scenes import KINDS, Scene, scene
from owl2.demo.world.text import RELATIONS, arithmetic_split, instructions, talk
from owl2.demo.world.vocabulary import (
    ALL_COLOURS,
    COLOURS,
    MORE_COLOURS,
    NAMES,
    NUMBER_WORDS,
    ONE_STYLE,
    SPLITS,
    STYLES,
    THINGS,
    WORDS,
    Split,
    colour_split,
    colours_of,
    companions,
    plural,
)
from tests.demo.held_out import HELD_OUT, uttered

NUMBER = 1500


def scenes(split: Split, number: int = NUMBER) -> list[Scene]:
    return [scene(seed, split) for seed in range(number)]


def pairs_shown(split: Split, number: int = NUMBER) -> set[tuple[str, str]]:
    return {(item.name, item.colour) for seen in scenes(split, number) for item in seen.items}


def test_the_world_is_as_large_as_promised() -> None:
    assert len(NAMES) >= 24
    assert len(COLOURS) == 8
    assert len(set(WORDS)) == 100
    assert not set(WORDS) & (set(NAMES) | set(COLOURS) | set(NUMBER_WORDS))
    assert {seen.count() for seen in scenes("train") if seen.kind == "group"} >= {1, 2, 3, 4, 5}


def test_a_scene_is_the_same_every_time_and_another_one_in_another_split() -> None:
    assert scene(7, "train") == scene(7, "train")
    assert scene(7, "train").items != scene(7, "test").items


def test_no_colour_of_a_thing_is_shown_in_two_splits() -> None:
    train, val, test = (pairs_shown(split, 4 * NUMBER) for split in SPLITS)
    assert not train & test
    assert not train & val
    assert not val & test
    assert train == {(name, colour) for name in NAMES for colour in colours_of(name, "train")}
    assert len(test) >= 0.15 * len(NAMES) * len(COLOURS)


def test_each_pair_of_a_thing_and_one_of_the_eight_colours_belongs_to_exactly_one_split() -> None:
    for name in NAMES:
        by_split = {split: set(colours_of(name, split)) & set(COLOURS) for split in SPLITS}
        assert sum(map(len, by_split.values())) == len(COLOURS) == len(set().union(*by_split.values()))
        assert len(by_split["train"]) in (5, 6)
        assert len(by_split["test"]) in (1, 2)
        assert len(by_split["val"]) == 1


def test_more_colours_are_worn_by_every_thing_in_training_and_by_none_elsewhere() -> None:
    assert not set(MORE_COLOURS) & set(COLOURS)
    for name in NAMES:
        assert set(MORE_COLOURS) < set(colours_of(name, "train"))
    for split in ("val", "test"):
        assert {colour for _, colour in pairs_shown(split)} <= set(COLOURS)
        for seen in scenes(split, 400):
            asked = " ".join(qa.question + " ".join(qa.choices) for qa in qas(seen, Random(seen.seed), 10))
            assert not [colour for colour in MORE_COLOURS if f" {colour} " in _words(asked)]


def test_every_colour_is_held_out_about_equally_often() -> None:
    held_out = Counter(colour for name in NAMES for colour in COLOURS if colour_split(name, colour) == "test")
    assert max(held_out.values()) - min(held_out.values()) <= 1


def test_things_that_meet_in_a_held_out_image_never_met_in_training() -> None:
    met = {
        split: {pair for seen in scenes(split) for pair in combinations(sorted(seen.names), 2)}
        for split in SPLITS
    }
    assert not met["train"] & met["test"]
    assert not met["train"] & met["val"]
    assert {len(companions(name, "test")) for name in NAMES} == {6}


def test_a_thing_of_one_style_has_that_style_in_training_and_the_others_in_the_test() -> None:
    shown = {split: {(i.name, i.style) for seen in scenes(split) for i in seen.items} for split in SPLITS}
    for name, style in ONE_STYLE.items():
        assert {s for n, s in shown["train"] if n == name} == {style}
        assert {s for n, s in shown["test"] if n == name} == set(STYLES) - {style}


def test_things_of_a_scene_do_not_overlap_by_more_than_a_sliver() -> None:
    for seen in scenes("train"):
        for a, b in combinations(seen.items, 2):
            width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
            height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
            assert width < 0.07 or height < 0.07


def test_things_are_large_enough_to_be_recognised() -> None:
    smallest = {
        kind: min(i.size for s in scenes("train") if s.kind == kind for i in s.items) for kind in KINDS
    }
    assert smallest["one"] >= 0.3
    assert smallest["group"] >= 0.26


def test_the_word_for_a_place_is_never_in_doubt() -> None:
    for seen in scenes("test"):
        for item in seen.items:
            assert all(abs(at - edge) > 0.02 for at in (item.x, item.y) for edge in (0.4, 0.6)), item


def test_an_unknown_kind_of_scene_is_an_error_that_lists_the_kinds() -> None:
    with pytest.raises(ValueError, match="'crowd' is unknown; choose one of one, several, group, word"):
        scene(0, "train", "crowd")


@pytest.mark.parametrize("split", SPLITS)
def test_answers_follow_from_the_scene(split: Split) -> None:
    kinds: Counter[str] = Counter()
    for seen in scenes(split, 600):
        for qa in qas(seen, Random(seen.seed), 10):
            kinds[qa.kind] += 1
            _check(seen, qa.kind, qa.question, qa.answer, qa.choices)
    assert min(kinds.values()) > 20
    assert len(kinds) == 9


def _check(seen: Scene, kind: str, question: str, answer: str, choices: tuple[str, ...]) -> None:
    asked = [
        name
        for name in NAMES
        if f" {name} " in _words(question) or f" {plural(name, 2)} " in _words(question)
    ]
    if kind == "counting":
        assert int(answer) == (seen.count(asked[0]) if asked else seen.count())
    elif kind == "colour":
        of = [item for item in seen.items if not asked or item.name == asked[0]]
        assert {item.colour for item in of} == {answer}
    elif kind == "naming":
        assert seen.count(answer) == 1
    elif kind == "reading":
        assert seen.sign is not None
        assert seen.sign.text == answer
    elif kind == "position" and question.startswith("Where"):
        assert place(next(item for item in seen.items if item.name == asked[0])) == answer
    elif kind == "choice":
        assert len(set(choices)) == 4
        assert f"\n{answer}. {choices['ABCD'.index(answer)]}" in question
    elif kind == "yes_no" and len(asked) == 1 and " is the " not in _words(question):
        colour = next((colour for colour in ALL_COLOURS if f" {colour} " in _words(question)), None)
        number = next(
            (n for n, word in enumerate(NUMBER_WORDS) if n and f" {word} " in _words(question)), None
        )
        count = seen.count(asked[0], colour)
        assert (answer == "yes") == (count > 0 if number is None else count == number), (question, seen)


def _words(text: str) -> str:
    return f" {text.lower().replace('?', ' ').replace('.', ' ')} "


def test_yes_and_no_are_balanced_and_negatives_are_adversarial() -> None:
    answers = Counter(
        qa.answer for seen in scenes("train") for qa in qas(seen, Random(seen.seed), 9) if qa.kind == "yes_no"
    )
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.02
    seen = next(s for s in scenes("train") if s.kind == "one" and s.items[0].name == "dog")
    noes = [yes_no(seen, Random(n), False) for n in range(300)]
    text = " ".join(qa.question for qa in noes if qa)
    assert f"Is the dog {seen.items[0].colour}" not in text
    assert any(f"Is the dog {colour}?" in text for colour in COLOURS)
    assert any(f"a {seen.items[0].colour} {name}?" in text for name in NAMES if name != "dog")
    animals = sum(text.count(f" {thing.name}") for thing in THINGS if thing.category == "animal")
    assert animals > 40


def test_no_held_out_pair_is_uttered_where_training_images_are_spoken_of() -> None:
    """Captions of stage 1 and instructions of stage 2, the text-only ones included."""
    said = []
    for seen in scenes("train"):
        rng = Random(seen.seed)
        said += [caption(seen, rng), describe(seen), *(qa.question for qa in qas(seen, rng, 10))]
        said += [qa.answer for qa in qas(seen, rng, 10)]
    said += [line for number in range(1500) for turn in instructions(number, "train") for line in turn]
    spoken_of = uttered(said)
    assert not spoken_of & HELD_OUT
    assert len(spoken_of) > 0.95 * (len(NAMES) * len(COLOURS) - len(HELD_OUT))


def test_language_alone_may_speak_of_every_composition() -> None:
    said = [line for number in range(4000) for turn in talk(number) for line in turn]
    assert len(uttered(said) & HELD_OUT) > 0.9 * len(HELD_OUT)


def test_captions_name_every_thing_and_every_word() -> None:
    for seen in scenes("train", 300):
        text = caption(seen, Random(seen.seed))
        for name in seen.names:
            assert plural(name, seen.count(name)) in text
        assert seen.sign is None or seen.sign.text in text


def test_the_text_test_asks_known_facts_in_unknown_phrasings_of_known_words() -> None:
    trained = {line for number in range(4000) for line, _ in instructions(number, "train", (4, 6))}
    asked = {line for number in range(200) for line, _ in instructions(number, "test")}
    assert not trained & asked
    for known in RELATIONS:
        assert known.test not in known.train
    words = {word for line in trained for word in _words(line).split()}
    assert {word for line in asked for word in _words(line).split()} <= words


def test_sums_and_their_turned_round_twins_are_in_one_split() -> None:
    pairs = [(a, b) for a in range(11) for b in range(11 - a)]
    assert all(arithmetic_split(a, b) == arithmetic_split(b, a) for a, b in pairs)
    assert Counter(arithmetic_split(a, b) for a, b in pairs)["test"] >= 8

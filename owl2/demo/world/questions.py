"""Question-answer pairs about a scene, each true by construction.

Each kind of question has a function in the table `MAKERS`, which returns None if the scene admits no
unambiguous question of that kind. Answers are short canonical strings: names and colours in lower case,
counts as digits, yes or no, an option's letter. Negatives are adversarial as in POPE: something of the same
category, the right colour on the wrong thing, the right thing in the wrong colour, a count off by one, a
relation reversed. A training question never mentions a (thing, colour) pair held out from training: a "no"
about it would teach the test's answer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from owl2.data.recipes import wording
from owl2.demo.world.captions import BIGGER, OPPOSITE, groups, place, relation
from owl2.demo.world.scenes import Item, Scene
from owl2.demo.world.vocabulary import (
    BY_NAME,
    MAX_COUNT,
    NAMES,
    NUMBER_WORDS,
    WORDS,
    article,
    colour_split,
    palette,
    plural,
)

SHORT = f" {wording.SHORT}"
LETTER = f"\n{wording.LETTER}"


@dataclass(frozen=True)
class QA:
    """A question, its answer and its kind; `choices` are the options of multiple choice, in order."""

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


Maker = Callable[[Scene, Random], QA | None]
Statement = Callable[[Scene, Random, bool], str | None]
"""Makes a yes/no question whose answer is yes if the flag is true; None if the scene admits none."""


def qas(scene: Scene, rng: Random, n: int, kinds: Sequence[str] | None = None) -> list[QA]:
    """Up to n different question-answer pairs; kinds are sampled by `WEIGHTS`, yes and no with equal chance.

    `kinds` restricts them. At most two questions of a kind have the same answer (except yes and no), so a
    scene with little in it may admit fewer than n.
    """
    kinds = tuple(kinds or WEIGHTS)
    weights = [WEIGHTS[kind] for kind in kinds]
    found: dict[str, QA] = {}
    used: Counter[tuple[str, str]] = Counter()
    is_true = rng.random() < 0.5
    for _ in range(6 * n):
        kind = rng.choices(kinds, weights)[0]
        qa = yes_no(scene, rng, is_true, TAUGHT) if kind == "yes_no" else MAKERS[kind](scene, rng)
        if qa is None or qa.question in found or (kind != "yes_no" and used[kind, qa.answer] == 2):
            continue
        found[qa.question] = qa
        used[kind, qa.answer] += 1
        if kind == "yes_no":
            # Chosen only after a success: a scene has fewer true statements than false ones, so attempts at
            # a true one are repeated more often, and a new choice per attempt would favour "no".
            is_true = rng.random() < 0.5
        if len(found) == n:
            break
    return [_with_suffix(qa, rng) for qa in found.values()]


def yes_no(
    scene: Scene, rng: Random, is_true: bool, statements: Sequence[Statement] | None = None
) -> QA | None:
    """A yes/no question with the wanted answer; by default one of those that the test asks."""
    statement = rng.choice(statements or ASKED)
    question = statement(scene, rng, is_true) or _presence(scene, rng, is_true)
    if is_true == (scene.sign is not None) and (question is None or rng.random() < 0.1):
        question = rng.choice(("Is there a word in the picture?", "Is there a word in the image?"))
    return QA("yes_no", question, "yes" if is_true else "no") if question else None


def absent(scene: Scene, rng: Random) -> str:
    """A thing that is not in the scene; half the time of the same category as something that is."""
    others = [name for name in NAMES if name not in scene.names]
    categories = {BY_NAME[name].category for name in scene.names}
    like = [name for name in others if BY_NAME[name].category in categories]
    return rng.choice(like if like and rng.random() < 0.5 else others)


def _presence(scene: Scene, rng: Random, is_true: bool) -> str | None:
    if is_true and not scene.items:
        return None
    name = rng.choice(scene.names) if is_true else absent(scene, rng)
    a = article(name)
    return rng.choice(
        (
            f"Is there {a} in the image?",
            f"Is there {a} in the picture?",
            f"Is there {a}?",
            f"Does the picture show {a}?",
            f"Do you see {a}?",
        )
    )


def _pair_presence(scene: Scene, rng: Random, is_true: bool) -> str | None:
    pair = _true_pair(scene, rng) if is_true else _false_pair(scene, rng)
    if pair is None:
        return None
    a = article(f"{pair[1]} {pair[0]}")
    return rng.choice((f"Is there {a}?", f"Is there {a} in the image?", f"Is there {a} in the picture?"))


def _has_colour(scene: Scene, rng: Random, is_true: bool) -> str | None:
    if not scene.items:
        return None
    item = rng.choice(scene.items)
    colour = item.colour if is_true else _other_colour(scene, item.name, rng)
    if scene.count(item.name) > 1:
        return f"Are the {plural(item.name, 2)} {colour}?"
    return rng.choice((f"Is the {item.name} {colour}?", f"Is the color of the {item.name} {colour}?"))


def _has_count(scene: Scene, rng: Random, is_true: bool) -> str | None:
    if scene.kind != "group":
        return None
    count, item = groups(scene)[0]
    asked = count if is_true else rng.choice([n for n in (count - 1, count + 1) if 1 <= n <= MAX_COUNT])
    verb = "Is there" if asked == 1 else "Are there"
    return f"{verb} {NUMBER_WORDS[asked]} {plural(item.name, asked)}?"


def _has_relation(scene: Scene, rng: Random, is_true: bool) -> str | None:
    pair = _related(scene, rng)
    if pair is None:
        return None
    a, how, b = pair
    return f"Is the {a.name} {how if is_true else OPPOSITE[how]} the {b.name}?"


def _naming(scene: Scene, rng: Random) -> QA | None:
    if not scene.items:
        return None
    if len(scene.names) == 1:
        if scene.count() > 1:
            return None
        what = ("What is in the picture?", "What is this?", "What is in the image?", "Which object is shown?")
        return QA("naming", rng.choice(what), scene.names[0])
    item = rng.choice(scene.items)
    if scene.count(item.name) > 1:
        return None
    by_colour = f"What is the {item.colour} object?" if scene.count(colour=item.colour) == 1 else None
    is_alone_there = sum(place(other) == place(item) for other in scene.items) == 1
    by_place = f"What is at the {place(item)}?" if is_alone_there else None
    questions = [question for question in (by_colour, by_colour, by_place) if question]
    return QA("naming", rng.choice(questions), item.name) if questions else None


def _colour(scene: Scene, rng: Random) -> QA | None:
    if not scene.items:
        return None
    item = rng.choice(scene.items)
    if scene.count(item.name) > 1:
        things = plural(item.name, 2)
        return QA(
            "colour",
            rng.choice((f"What color are the {things}?", f"Which color are the {things}?")),
            item.colour,
        )
    asked = [f"What color is the {item.name}?", f"Which color is the {item.name}?"]
    if len(scene.items) == 1:
        asked += [f"What is the color of the {item.name}?", "What color is the object?"]
    return QA("colour", rng.choice(asked), item.colour)


def _counting(scene: Scene, rng: Random) -> QA | None:
    if scene.kind != "group" and rng.random() < 0.9:
        return None  # in all other scenes the count is nearly always 1
    total = scene.count()
    if scene.items and total <= MAX_COUNT and rng.random() < 0.2:
        return QA("counting", "How many objects are there?", str(total))
    if not scene.items:
        return None
    count, item = groups(scene)[0] if rng.random() < 0.9 else rng.choice(groups(scene))
    things = plural(item.name, 2)
    asked = (
        f"How many {things} are there?",
        f"How many {things} are in the picture?",
        f"How many {things} do you see?",
        f"How many {item.colour} {things} are there?",
    )
    return QA("counting", rng.choice(asked), str(count))


def _position(scene: Scene, rng: Random) -> QA | None:
    pair = _related(scene, rng)
    if pair is not None and rng.random() < 0.5:
        a, how, b = pair
        return QA("position", f"What is {how} the {b.name}?", a.name) if len(scene.items) == 2 else None
    alone = [item for item in scene.items if scene.count(item.name) == 1]
    if not alone:
        return None
    item = rng.choice(alone)
    return QA("position", f"Where is the {item.name}?", place(item))


def _comparison(scene: Scene, rng: Random) -> QA | None:
    if len(scene.names) < 2:
        return None
    (count_a, a), (count_b, b) = rng.sample(groups(scene), 2)
    if count_a != count_b:
        things = rng.sample((plural(a.name, 2), plural(b.name, 2)), 2)
        more = a if count_a > count_b else b
        return QA("comparison", f"Are there more {things[0]} or {things[1]}?", plural(more.name, 2))
    if count_a > 1:
        return None
    ratio = a.size / b.size
    if rng.random() < 0.5 and max(ratio, 1 / ratio) >= BIGGER:
        return QA(
            "comparison", f"Which is bigger, the {a.name} or the {b.name}?", (a if ratio > 1 else b).name
        )
    same = "yes" if a.colour == b.colour else "no"
    # Two random colours differ 7 times in 8: keep one "no" in three.
    if same == "no" and rng.random() < 0.66:
        return None
    return QA("comparison", f"Do the {a.name} and the {b.name} have the same color?", same)


def _choice(scene: Scene, rng: Random) -> QA | None:
    maker = rng.choice((_naming, _colour, _counting, _reading))
    base = maker(scene, rng)
    if base is None:
        return None
    pool: tuple[str, ...] = {
        "naming": tuple(name for name in NAMES if name not in scene.names),
        "colour": palette(scene.split),
        "counting": tuple(str(n) for n in range(1, MAX_COUNT + 1)),
        "reading": WORDS,
    }[base.kind]
    wrong = rng.sample([option for option in pool if option != base.answer], 3)
    options = [*wrong, base.answer]
    rng.shuffle(options)
    lines = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return QA("choice", base.question + lines, "ABCD"[options.index(base.answer)], tuple(options))


def _region(scene: Scene, rng: Random) -> QA | None:
    if not scene.items:
        return None
    item = rng.choice(scene.items)
    box = "[" + ", ".join(f"{edge:.2f}" for edge in item.box) + "]"
    if rng.random() < 0.3:
        return QA("region", f"What color is the object in the region {box}?", item.colour)
    return QA("region", f"What is in the region {box}?", item.name)


def _reading(scene: Scene, rng: Random) -> QA | None:
    if scene.sign is None:
        return None
    asked = ("What word is written?", "Which word is in the picture?", "What does the sign say?")
    return QA("reading", rng.choice(asked), scene.sign.text)


ASKED: tuple[Statement, ...] = (
    _presence,
    _presence,
    _pair_presence,
    _has_colour,
    _has_count,
    _has_relation,
)
TAUGHT = (*ASKED, _pair_presence, _pair_presence)
"""Questions about a thing and its colour need more practice than others: half of such "no" answers were
missed."""
WEIGHTS: dict[str, float] = {
    "yes_no": 4,
    "naming": 2.5,
    "colour": 2.5,
    "counting": 3.5,
    "position": 0.5,
    "comparison": 0.4,
    "choice": 0.3,
    "region": 0.3,
    "reading": 0.5,
}
MAKERS: dict[str, Maker] = {
    "yes_no": lambda scene, rng: yes_no(scene, rng, rng.random() < 0.5),
    "naming": _naming,
    "colour": _colour,
    "counting": _counting,
    "position": _position,
    "comparison": _comparison,
    "choice": _choice,
    "region": _region,
    "reading": _reading,
}


def ask(kind: str, scene: Scene, rng: Random) -> QA | None:
    """One question of a kind about a scene, without suffix; None if the scene admits none."""
    return MAKERS[kind](scene, rng)


def _with_suffix(qa: QA, rng: Random) -> QA:
    suffix = LETTER if qa.choices else SHORT
    return QA(qa.kind, qa.question + suffix, qa.answer, qa.choices) if rng.random() < 0.3 else qa


def _may_mention(scene: Scene, name: str, colour: str) -> bool:
    return scene.split != "train" or colour_split(name, colour) == "train"


def _true_pair(scene: Scene, rng: Random) -> tuple[str, str] | None:
    item = rng.choice(scene.items) if scene.items else None
    return (item.name, item.colour) if item else None


def _false_pair(scene: Scene, rng: Random) -> tuple[str, str] | None:
    """A present thing in a wrong colour, or a present colour on an absent thing."""
    if not scene.items:
        return None
    item = rng.choice(scene.items)
    if rng.random() < 0.5:
        return item.name, _other_colour(scene, item.name, rng)
    for _ in range(8):
        name = absent(scene, rng)
        if _may_mention(scene, name, item.colour):
            return name, item.colour
    return None


def _other_colour(scene: Scene, name: str, rng: Random) -> str:
    return rng.choice(
        [
            colour
            for colour in palette(scene.split)
            if not scene.count(name, colour) and _may_mention(scene, name, colour)
        ]
    )


def _related(scene: Scene, rng: Random) -> tuple[Item, str, Item] | None:
    alone = [item for item in scene.items if scene.count(item.name) == 1]
    if len(alone) < 2:
        return None
    a, b = rng.sample(alone, 2)
    how = relation(a, b)
    return (a, how, b) if how else None

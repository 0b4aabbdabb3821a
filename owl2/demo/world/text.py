"""Text without images: facts, arithmetic, definitions, and conversations about scenes in words.

`instruction` makes the text-only part of stage 2, which the paper mixes in to keep the language ability.
`talk` makes what the small decoder is pre-trained on: the same, and questions about described scenes, so that
the questions of stage 2 are known language before any image is. The test asks the same facts in a phrasing
that training never uses (all its words do occur), and sums and differences of pairs that training never uses.
"""

from dataclasses import dataclass
from random import Random

from owl2.demo.world.captions import caption, describe, listing
from owl2.demo.world.questions import QA, SHORT, qas
from owl2.demo.world.scenes import scene
from owl2.demo.world.vocabulary import ALL_COLOURS, NAMES, NUMBER_WORDS, THINGS, Split, article, plural

Turn = tuple[str, str]

CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, England London, Greece Athens, Egypt Cairo, "
    "Japan Tokyo, China Beijing, Russia Moscow, Austria Vienna, Norway Oslo, Sweden Stockholm, Finland "
    "Helsinki, Poland Warsaw, Portugal Lisbon, Ireland Dublin, Turkey Ankara, Cuba Havana, Peru Lima, "
    "Chile Santiago, Canada Ottawa, Kenya Nairobi, Denmark Copenhagen"
)
BABIES = (
    "cat kitten, dog puppy, cow calf, horse foal, sheep lamb, lion cub, duck duckling, frog tadpole, goat kid"
)
SOUNDS = (
    "cat meow, dog woof, cow moo, sheep baa, duck quack, lion roar, pig oink, crow caw, bee buzz, snake hiss"
)
OPPOSITES = (
    "hot cold, big small, tall short, fast slow, day night, up down, open closed, happy sad, old new, wet "
    "dry, hard soft, full empty, early late, high low, light dark, rich poor, strong weak, thick thin, "
    "loud quiet, near far"
)
PAINTS = (
    "grass green, snow white, coal black, blood red, milk white, gold yellow, chocolate brown, butter "
    "yellow, night black, sugar white, mud brown, cherry red, spinach green, lemon yellow, ocean blue, "
    "cloud white"
)
LEGS = (
    "cat 4, dog 4, horse 4, cow 4, bird 2, spider 8, bee 6, snake 0, duck 2, lion 4, fish 0, butterfly 6, "
    "snail 0"
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


@dataclass(frozen=True)
class Relation:
    """Facts of one kind."""

    name: str
    facts: dict[str, str]
    """Subject -> answer."""
    train: tuple[str, ...]
    test: str
    """Phrasings: those of training, and the one that only the test uses."""


def _facts(table: str) -> dict[str, str]:
    return {subject: answer for subject, answer in (entry.split() for entry in table.split(","))}


def _successors(names: list[str]) -> dict[str, str]:
    return dict(zip(names, names[1:] + names[:1], strict=True))


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "capital",
        _facts(CAPITALS),
        ("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}."),
        "What city is the capital of {}?",
    ),
    Relation(
        "baby",
        _facts(BABIES),
        ("What is a baby {} called?", "What do you call a baby {}?", "Name the baby of a {}."),
        "What is the baby of a {} called?",
    ),
    Relation(
        "sound",
        _facts(SOUNDS),
        ("What does a {} say?", "Which sound does a {} make?", "What is the sound of a {}?"),
        "What sound does a {} make?",
    ),
    Relation(
        "opposite",
        _facts(OPPOSITES),
        ("What is the opposite of {}?", "Which word is the opposite of {}?", "Name the opposite of {}."),
        "What word is the opposite of {}?",
    ),
    Relation(
        "paint",
        _facts(PAINTS),
        ("What color is {}?", "Which color does {} have?", "What is the color of {}?"),
        "What color does {} have?",
    ),
    Relation(
        "legs",
        _facts(LEGS),
        ("How many legs does a {} have?", "How many legs are on a {}?", "Count the legs of a {}."),
        "How many are the legs of a {}?",
    ),
    Relation(
        "next",
        _successors(DAYS) | _successors(MONTHS),
        ("What comes after {}?", "What follows {}?", "Which one comes after {}?"),
        "What is the one after {}?",
    ),
    Relation(
        "category",
        {article(thing.name): thing.category for thing in THINGS},
        ("What is {}?", "What kind of object is {}?", "What do you call {}?"),
        "Which kind of object is {}?",
    ),
)
SUMS = (
    ("What is {} plus {}?", "{} + {} =", "How much is {} plus {}?"),
    ("What is {} minus {}?", "{} - {} =", "How much is {} minus {}?"),
)
LIMIT = 10


def arithmetic_split(a: int, b: int) -> Split:
    """The split that asks for a + b, b + a and their differences: 15 % of the pairs are the test's, 8 %
    validation's."""
    slot = (5 * min(a, b) + 3 * max(a, b)) % 13
    return "test" if slot in (1, 6) else "val" if slot == 11 else "train"


def fact(rng: Random, split: Split) -> QA:
    """A question about a fact; the test uses the held-out phrasing."""
    known = rng.choice(RELATIONS)
    subject, answer = rng.choice(tuple(known.facts.items()))
    return QA("text", (known.test if split == "test" else rng.choice(known.train)).format(subject), answer)


def arithmetic(rng: Random, split: Split) -> QA:
    """A sum or difference of numbers up to LIMIT from the split's pairs."""
    pairs = [
        (a, b) for a in range(LIMIT + 1) for b in range(LIMIT + 1 - a) if arithmetic_split(a, b) == split
    ]
    a, b = rng.choice(pairs)
    if rng.random() < 0.5:
        return QA("text", rng.choice(SUMS[0]).format(a, b), str(a + b))
    return QA("text", rng.choice(SUMS[1]).format(a + b, b), str(a))


def instruction(rng: Random, split: Split) -> QA:
    """One text-only question: a fact three times in four, otherwise arithmetic."""
    return fact(rng, split) if rng.random() < 0.75 else arithmetic(rng, split)


def instructions(seed: int, split: Split, turns: tuple[int, int] = (2, 5)) -> list[Turn]:
    """A text-only conversation of different questions."""
    rng = Random(f"owl2 instructions {split} {seed}")
    found = {qa.question: qa for qa in (instruction(rng, split) for _ in range(rng.randint(*turns)))}
    return [(qa.question + SHORT if rng.random() < 0.2 else qa.question, qa.answer) for qa in found.values()]


def talk(seed: int, split: Split = "train") -> list[Turn]:
    """A conversation without an image, for the decoder's pre-training.

    Its scenes have all combinations (`any`), as LLaMA-2 has read of green cats: splits are of images.
    """
    rng = Random(f"owl2 talk {split} {seed}")
    what = rng.random()
    if what < 0.4:
        return _lookups(rng)
    if what < 0.55:
        return instructions(seed, split)
    described = scene(seed, "any")
    said = caption(described, rng)
    if what < 0.6:
        return [(f"{describe(described)} Write a caption.", said)]
    asked = [
        (qa.question, qa.answer)
        for qa in qas(described, rng, rng.randint(3, 7), TALK_KINDS if what < 0.85 else None)
        if "region" not in qa.question
    ]
    if what < 0.65 or not asked:
        return [(_keywords(said, len(described.names), rng), said)]
    opening = _keywords(said, len(described.names), rng) if what < 0.85 else describe(described)
    (question, answer), *rest = asked
    return [(f"{opening} {question}", answer), *rest]


TALK_KINDS = ("yes_no", "naming", "colour", "counting")


def _keywords(said: str, count: int, rng: Random) -> str:
    """A sentence as eight of its words, some twice, in random order if it is about one thing only.

    This is close to what visual tokens are to the decoder after the warm start: words without grammar.
    """
    words = said.replace(",", "").split()
    picked = rng.choices(range(len(words)), k=8)
    return " ".join(words[i] for i in (sorted(picked) if count > 1 else picked))


def _lookups(rng: Random) -> list[Turn]:
    """Up to four things in one sentence, then short questions about them.

    Nearly every answer must be looked up in the sentence: that, not more text, teaches a small decoder to
    look things up.
    """
    count = rng.choice((1, 1, 2, 2, 3, 3, 4))
    colours = rng.choices(tuple(ALL_COLOURS), k=count)
    things = [
        _Thing(name, colour, rng.choice((1, 1, 1, 1, 2, 3, 4, 5)))
        for name, colour in zip(rng.sample(NAMES, count), colours, strict=True)
    ]
    said = listing([thing.phrase for thing in things])
    verb = "are" if count > 1 or things[0].count > 1 else "is"
    opening = rng.choice((f"There {verb} {said}.", f"{said[0].upper()}{said[1:]}."))
    answers = dict(_lookup(rng, thing, things) for thing in rng.choices(things, k=rng.randint(4, 10)))
    (question, answer), *rest = answers.items()
    return [(f"{opening} {question}", answer), *rest]


@dataclass(frozen=True)
class _Thing:
    name: str
    colour: str
    count: int

    @property
    def phrase(self) -> str:
        if self.count == 1:
            return article(f"{self.colour} {self.name}")
        return f"{NUMBER_WORDS[self.count]} {self.colour} {plural(self.name, self.count)}"


def _lookup(rng: Random, thing: _Thing, things: list[_Thing]) -> Turn:
    what = rng.random()
    many = plural(thing.name, 2)
    if what < 0.34 and thing.count == 1:
        if len(things) == 1 and rng.random() < 0.5:
            return rng.choice(
                ("What is this?", "What is in the picture?", "Which object is shown?")
            ), thing.name
        if [other.colour for other in things].count(thing.colour) == 1:
            return f"What is the {thing.colour} object?", thing.name
    if what < 0.52:
        subject = f"is the {thing.name}" if thing.count == 1 else f"are the {many}"
        return f"{rng.choice(('What', 'Which'))} color {subject}?", thing.colour
    if what < 0.58:
        return f"How many {many} are there?", str(thing.count)
    is_true = rng.random() < 0.5
    if what < 0.8:
        absent = rng.choice([name for name in NAMES if name not in {other.name for other in things}])
        return f"Is there {article(thing.name if is_true else absent)}?", "yes" if is_true else "no"
    colour = thing.colour if is_true else rng.choice([c for c in ALL_COLOURS if c != thing.colour])
    subject = f"Is the {thing.name}" if thing.count == 1 else f"Are the {many}"
    return f"{subject} {colour}?", "yes" if is_true else "no"

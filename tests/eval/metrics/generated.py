"""Seeded answers and captions for the oracle tests, with everything that metrics get wrong."""

import random

ANSWERS = """
yes no Yes No YES none None nothing not maybe 2 two Two 10 ten zero 0 1,000 1000 3.5 .5 half cat cats
a|the|an|red|Red.|red?|red!|dark red|dark-red|black/white|black / white|black and white|t-shirt|T shirt
dont don't dog's dogs' isnt isn't somebody'd yall couldntve couldn't've oclock o'clock 5:30 5:30pm $5 50% #1
unanswerable unsuitable|stop sign|a stop sign|"stop"|(stop)|stop;|stop_sign|stop@sign|e.g.|U.S.A.|St. John's
""".replace("\n", " ")
WORDS = [
    word for group in ANSWERS.split("|") for word in (group.split() if group.count(" ") > 3 else [group])
]
JOINTS = (" ", " ", " ", ", ", ". ", "\n", "\t", "-", "/", " , ", "... ", "; ", ",", "  ")


def answer(random: random.Random, longest: int = 4) -> str:
    """A few words, joined by anything, perhaps with blanks around."""
    text = random.choice(WORDS)
    for _ in range(random.choice((0, 0, 0, 1, 1, longest - 1))):
        text += random.choice(JOINTS) + random.choice(WORDS)
    return (
        random.choice(("", "", "", " ", "\n")) + text + random.choice(("", "", "", ".", "!", " ", "\n", "?"))
    )


def ten_answers(random: random.Random, prediction: str) -> list[str]:
    """What ten people say: alike, nearly alike or not, and often the prediction."""
    pool = [answer(random, 2) for _ in range(random.choice((1, 2, 3, 6)))]
    near = [prediction, prediction.strip(), prediction.lower(), prediction.strip(" .!?\n").lower()]
    return [random.choice(near if random.random() < 0.4 else pool) for _ in range(10)]


SENTENCES = """
A {n} {noun} {verb} {place}
{D} {adj} {noun} and {d} {adj} {noun} {verb} {place}
There is {d} {noun} {place} with {d} {noun}
{D} {noun}'s {noun} {verb} {place}, {verb2} {d} {noun}
{N} {noun}s {verb} {place}; {d} {noun} isn't {verb2} it
{D} sign that says "{sign}" {place}
{D} sign says {sign} {place}
{D} {noun} wearing {d} {adj}-{adj} {noun} {verb} {place}
{D} {noun} ({adj}) {verb} {place}
{D} {noun}/{noun} {verb} {place} at {time}
It's {d} {noun} - it doesn't {verb2} {place}
{D} {noun} , {d} {noun} and {d} {noun} {place}
It costs {money} {place}
{D} {noun} from {year} {verb} on {street}
"""
FILLED_BY = """
n: two|2|three|3|several|many|10|1,000|1/2|2.5|21st|3rd|half
N: Two|2|Three|Several|Many|10|1,000|1/2|Dr.|Mr.|St.|No.|J.
d: a|an|the|his|her|one|some|another|my|Sam's|James'|the
D: A|An|The|His|One|Some|Another|a|the|This
noun: man|woman|dog|cat|t-shirt|fire-hydrant|tv|T.V.|skateboarder|giraffe|bus|train|surfboard|laptop|child
noun: table|pizza|café|toilet|R&B-singer|X-ray|AT&T|M&M|iPhone6|B-52|SUV|frisbee.The|wave.A|o'clock|ma'am
adj: red|blue|large|small|black-and-white|5-year-old|well-lit|blurry|old-fashioned|half-eaten|4x4|3D
verb: is|sits|sitting|standing|can't move|cannot be seen|won't run|is riding|that's parked|they're
verb2: holding|eating|looking at|gonna catch|wearing|next to|riding
place: on a beach|in the U.S.|in St. Louis|at 5 p.m.|near Mt. Fuji|in front of a building|by 5th Ave.
place: on the street etc.|in a room w/ a view|at night|in Washington D.C.|on top of it|inside|at www.x.com
place: with Mr. Smith|in the '90s|under the sink...|in the kitchen!!|outside?|in the park (Central Park)
sign: STOP|Stop!|No. 5|50% OFF|no parking 8 a.m.-6 p.m.|$5.00|“EXIT”|it's open|Rock 'n' Roll|:)|#1|&
time: 10:30|10:30am|5pm|noon|5|7:15|12:00
money: $5|$5.00|€10|£3|5¢|100%|US$20|5$
year: 1980's|1980s|the '80s|the 80's|12/25/2010|2010-11
street: Main St.|5th Avenue|Elm st. and Oak|Sunset Blvd.|Rt. 66|42nd
"""
FILLERS: dict[str, list[str]] = {}
for _name, _, _words in (line.partition(": ") for line in FILLED_BY.strip().splitlines()):
    FILLERS.setdefault(_name, []).extend(_words.split("|"))
ENDS = (".", ".", ".", "", "", " .", "!", "..", ' "', ".)", " . ")
TEMPLATES = SENTENCES.strip().splitlines()


def caption(random: random.Random) -> str:
    """One or two sentences about nothing, as people and models write them."""
    text = " ".join(_sentence(random) for _ in range(random.choice((1, 1, 1, 2))))
    return text.replace("'", "\u2019") if random.random() < 0.05 else text


def _sentence(random: random.Random) -> str:
    template = random.choice(TEMPLATES)
    for name, words in FILLERS.items():
        while f"{{{name}}}" in template:
            template = template.replace(f"{{{name}}}", random.choice(words), 1)
    return template + random.choice(ENDS)


def captions_of_images(seed: int, images: int) -> tuple[list[str], list[list[str]]]:
    """A candidate and five references an image; the candidate shares words with one of them."""
    draw = random.Random(seed)
    references = [[caption(draw) for _ in range(5)] for _ in range(images)]
    candidates = [_changed(draw, draw.choice(captions)) for captions in references]
    return candidates, references


def _changed(draw: random.Random, text: str) -> str:
    words = text.split(" ")
    return " ".join(word for word in words if draw.random() < 0.85) + draw.choice(
        ("", " on a street", " red red")
    )

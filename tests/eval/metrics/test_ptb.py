"""The words of captions: what the Stanford jar printed, without punctuation as in coco-caption."""

import pytest

from owl2.eval.metrics.ptb import tokenize

FROM_THE_JAR = {
    "A man riding a wave on top of a surfboard.": "a man riding a wave on top of a surfboard",
    "Hit and miss. The end": "hit and miss the end",
    "Miss. and No. 5, but no. He": "miss. and no. 5 but no he",
    "at 5 p.m. The dog, J. Smith of the U.S.": "at 5 p.m. the dog j. smith of the u.s.",
    "vitamin C. The dr. is Mr. Who etc.": "vitamin c the dr. is mr. who etc.",
    "wow! yes!! no?! wait... ok": "wow yes !! no ?! wait ok",
    "cat.dog one,two a;b 1,000.5 10:30 10:30am": "cat.dog one two a b 1,000.5 10:30 10:30 am",
    "black-and-white re- -ed a--b x–y": "black-and-white re ed a b x y",
    "and/or a/b/c/d 1/2 1 1/2 w/ w/o 24/7 ½": "and/or a/b/c / d 1/2 1 1/2 w / w/o 24/7 1/2",
    "(a) [b] {c} <b>bold</b>": "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- <b> bold </b>",
    "\"a\" 'b' “c” ‘d’ ``e''": "a b c d e",
    "it's dogs' James's don't can't cannot won't": "it 's dogs james 's do n't ca n't can not wo n't",
    "it’s don’t o’clock": "it 's do n't o’clock",
    "I'm you're we've he'll she'd y'all": "i 'm you 're we 've he 'll she 'd y' all",
    "gonna gimme 'tis o'clock O'Brien rock'n'roll": "gon na gim me 't is o'clock o'brien rock 'n' roll",
    "'90s '53 original 1980's ma'am ol' man 'em": "'90s '53 original 1980 's ma'am ol' man 'em",
    "$5.00 US$5 5$ €5 £5 5¢ 50%": "$ 5.00 us$ 5 5 $ $ 5 # 5 5 cents 50 %",
    "#1 #tag @name a@b.com AT&T at&t M&M's &amp;": "# 1 #tag @name a@b.com at&t at & t m&m 's &",
    "https://x.org, www.x.com. example.org/foo file.jpg": "https://x.org www.x.com example.org/foo file.jpg",
    "non-U.S. pro-am. 0.8-1.0 1,000-foot": "non-u.s. pro-am 0.8-1 .0 1,000-foot",
    "2nd 5k 4x4 3D B-52 F-16 dd5.1 5'6\"": "2nd 5k 4x4 3d b-52 f-16 dd5 .1 5 6",
    "(555) 123-4567 12/25/2010 1-800-555-1234": "-lrb-555-rrb- 123-4567 12/25/2010 1-800-555-1234",
    "smile :) :-( C++ c# 🐶 a🐶b ♥ 20°": "smile :-rrb- :--lrb- c++ c# a b ♥ 20 °",
    "café Zoë 日本 naïve x²": "café zoë 日本 naïve x ²",
    "a man\tand\n  a dog ": "a man and a dog",
    "": "",
}


@pytest.mark.parametrize("caption", FROM_THE_JAR)
def test_a_caption_has_the_words_that_the_jar_finds(caption: str) -> None:
    assert tokenize(caption) == FROM_THE_JAR[caption].split()


def test_long_strange_texts_take_no_long_time() -> None:
    # Each of these invites a rule to try all ways of cutting.
    for text in ("a-" * 1000, "a." * 1000, "1," * 1000, "a'" * 1000, "<a" * 1000, "x/" * 1000, "." * 1000):
        tokenize(text)

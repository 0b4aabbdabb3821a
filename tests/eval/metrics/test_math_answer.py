"""Mathematics: where an answer is found, and what counts as the same."""

import pytest

from owl2.eval.metrics.math_answer import find_math_answer, math_equal


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (r"Thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{x = 2}", "2"),
        (r"\boxed 5", None),
        ("so $x$ is $y = 3$", "3"),
        ("then x = 2 + 2 = 4.", "4"),
        ("The answer is therefore 12", "12"),
        ("It takes 3 days and 4.5 hours", "4.5"),
        ("答案是 7", "7"),
        ("no idea", None),
    ],
)
def test_the_last_answer_is_found(output: str, expected: str | None) -> None:
    assert find_math_answer(output) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{2}", r"\dfrac12"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", ".5"),
        (r"\frac{1}{72}", r"\frac1{72}"),
        (r"\sqrt{3}", r"\sqrt3"),
        ("3", "x = 3"),
        ("90", r"90^\circ"),
        ("5", r"5\text{ cm}"),
        ("(1, 2)", r"\left(1,2\right)"),
    ],
)
def test_ways_of_writing_are_one(one: str, other: str) -> None:
    assert math_equal(one, other)
    assert math_equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("0.50", "1/2"), ("2", "3"), ("1/2", "2/4"), (None, "0"), ("", "0")]
)
def test_no_algebra_is_done(one: str | None, other: str) -> None:
    assert not math_equal(one, other)

"""Whatever a server replies, it costs the question it was for: the others are kept, in their order.

Hypothesis makes replies: JSON of any shape around the place of the answer, cut bodies, HTML, half surrogate
pairs. A run over them always ends, with the reason at each question that has no answer, and a second run asks
those alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from owl2.eval.engines.chat_client import ChatClient, Completion, NoAnswerError, read_completion
from owl2.eval.engines.endpoint import EndpointEngine
from owl2.eval.judge.prompts import JUDGES
from owl2.eval.runner import Batching
from tests.eval.server import body_of, served
from tests.eval.small import lines, plan, read, run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SURROGATES = st.text(st.characters(categories=["Cs", "Ll"]), min_size=1, max_size=4)


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """A body that is near to a chat completion, or far from it."""
    content: Any = draw(st.text(max_size=20) | SURROGATES | JSON)
    message: Any = draw(st.just({"role": "assistant", "content": content, "refusal": "no"}) | JSON)
    choices: Any = draw(st.just([{"message": message, "finish_reason": "length"}]) | JSON)
    usage = draw(st.just({"prompt_tokens": 3, "completion_tokens": 1}) | JSON)
    whole = {"model": draw(JSON), "choices": choices, "usage": usage}
    body = json.dumps(draw(st.just(whole) | JSON)).encode()
    cut = draw(st.none() | st.integers(0, len(body)))
    return draw(
        st.just(body[:cut])
        | st.just(b"<html><body>Bad gateway</body></html>")
        | st.just(b"[" * 100_000)
        | st.binary(max_size=30)
    )


def is_answer(body: bytes) -> bool:
    try:
        read_completion(body)
    except NoAnswerError:
        return False
    return True


@given(body=replies())
@settings(max_examples=200, deadline=None)
def test_a_body_is_a_completion_or_has_no_answer(body: bytes) -> None:
    if not is_answer(body):
        with pytest.raises(NoAnswerError) as caught:
            read_completion(body)
        assert str(caught.value).isprintable()
        return
    found = read_completion(body)
    assert isinstance(found, Completion)
    found.text.encode()
    assert found.prompt_tokens >= 0
    assert found.model.isprintable()


@given(text=st.text(max_size=60) | JSON.map(json.dumps) | JSON.map(repr) | SURROGATES)
@settings(max_examples=200, deadline=None)
def test_whatever_a_judge_writes_has_a_grade_or_none(text: str) -> None:
    for judge in JUDGES.values():
        grade = judge.read(text)
        assert grade is None or all(0 <= figure <= 6 for figure in grade.values())


def test_a_run_over_any_replies_ends_and_keeps_every_good_one(vqa_data: Path) -> None:
    items = {item.question: item for item in plan(vqa_data).items}
    odd: dict[str, bytes] = {}

    def answer(request: dict[str, Any]) -> str | bytes:
        asked = request["messages"][0]["content"][1]["text"]
        (question,) = (known for known in items if asked.startswith(known))
        return odd.get(items[question].id, f"answer {items[question].id}")

    with served(answer) as script:

        @given(bodies=st.lists(replies(), min_size=1, max_size=4), first=st.integers(0, 11))
        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        def check(bodies: list[bytes], first: int) -> None:
            odd.clear()
            odd.update(zip(list(item.id for item in items.values())[first:], bodies, strict=False))
            expected = {name: body for name, body in odd.items() if not is_answer(body)}
            client = ChatClient(script.url, "owl", max_tries=2, first_wait_s=0.001, timeout_s=5)
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder)
                outcome = run(EndpointEngine(client), vqa_data, out, batching=Batching(max_rows=8))
                assert outcome.errors.keys() == expected.keys()
                found = read(out).by_id
                assert found.keys() == {item.id for item in items.values()}
                for name, row in found.items():
                    if name not in odd:
                        assert row.output == f"answer {name}"
                    assert bool(row.error) == (name in expected)
                odd.clear()
                again = run(EndpointEngine(client), vqa_data, out)
                assert again.num_asked == len(expected)
                assert not again.errors

        check()


ODD: dict[str, bytes] = {
    "the reply has no text: content is None": body_of(None),
    "refusal 'I will not'": b'{"choices": [{"message": {"content": null, "refusal": "I will not"}}]}',
    "finish_reason 'length'": b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}',
    r"half a surrogate pair: '\ud83d'": body_of("\ud83d"),
    "content is ['yes']": body_of(["yes"]),
    "the reply has no message: '{}'": b"{}",
    "has no message: '{\"choices\": []}'": b'{"choices": []}',
    "not JSON (Expecting value: line 1 column 1 (char 0)): '<html>": b"<html>Sign in</html>",
    "not JSON (Unterminated string": b'{"choices": [{"mess',
    "no chat completion: '[]'": b"[]",
}
"""The reason that is recorded -> the reply."""


def test_one_odd_reply_costs_its_question_and_says_why(vqa_data: Path, tmp_path: Path) -> None:
    unlucky = plan(vqa_data).items[5]
    bodies: list[bytes] = []

    def answer(request: dict[str, Any]) -> str | bytes:
        return bodies[-1] if unlucky.question in str(request["messages"][0]["content"][1]) else "yes"

    with served(answer) as script:
        client = ChatClient(script.url, "owl", max_tries=2, first_wait_s=0.001, timeout_s=5)
        for number, (reason, body) in enumerate(ODD.items()):
            bodies.append(body)
            outcome = run(EndpointEngine(client), vqa_data, tmp_path / str(number))
            assert list(outcome.errors) == [unlucky.id]
            assert reason in outcome.errors[unlucky.id]
            assert sum(row["output"] == "yes" for row in lines(tmp_path / str(number))) == 15

"""A server is asked the same questions, and its answers are scored like the model's own."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl2.eval.engines.chat_client import ChatClient
from owl2.eval.engines.endpoint import EndpointEngine
from owl2.eval.engines.engine import EngineError, Prompt
from owl2.eval.task import Decoding
from tests.eval.server import Trouble, body_of, served
from tests.eval.small import lines, plan, read, run, write_vqa


def engine(url: str) -> EndpointEngine:
    return EndpointEngine(ChatClient(url, "owl", first_wait_s=0.01, timeout_s=5, max_tries=3))


def test_questions_reach_the_server_with_their_images_and_answers_are_kept(
    vqa_data: Path, tmp_path: Path
) -> None:
    def repeat(request: dict[str, Any]) -> str:
        return str(request["messages"][0]["content"][1]["text"].split("?")[0])

    with served(repeat, [500]) as script:
        run(engine(script.url), vqa_data, tmp_path)
    items = {item.id: item for item in plan(vqa_data).items}
    assert {row["id"]: row["output"] for row in lines(tmp_path)} == {
        name: item.question.rstrip("?") for name, item in items.items()
    }
    request = script.requests[-1]
    assert (request["max_tokens"], request["temperature"]) == (10, 0)
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    asked = request["messages"][0]["content"][1]["text"].split("?")[0]
    (item,) = [item for item in items.values() if item.question == f"{asked}?"]
    assert sent.tobytes() == item.images[0].open().tobytes()


def test_a_server_that_dies_stops_the_run_and_the_rest_is_asked_later(vqa_data: Path, tmp_path: Path) -> None:
    def dies(count: int) -> list[Trouble]:
        return [*["yes"] * count, *[503] * 999]

    from owl2.eval.runner import Batching

    with (
        served(lambda request: "no", dies(4)) as script,
        pytest.raises(EngineError, match="the same command goes on"),
    ):
        run(engine(script.url), vqa_data, tmp_path, batching=Batching(max_rows=2))
    assert len(lines(tmp_path)) == 4
    with served(lambda request: "no") as script:
        assert run(engine(script.url), vqa_data, tmp_path).num_asked == len(plan(vqa_data).items) - 4


def test_of_a_batch_in_which_the_server_dies_the_replies_that_came_are_kept(
    vqa_data: Path, tmp_path: Path
) -> None:
    lucky = {item.question for item in plan(vqa_data).items[::2]}

    def answer(request: dict[str, Any]) -> Trouble:
        asked = request["messages"][0]["content"][1]["text"]
        return "yes" if any(asked.startswith(question) for question in lucky) else 503

    with served(answer) as script, pytest.raises(EngineError, match=r"no answer in 3 tries.*503"):
        run(engine(script.url), vqa_data, tmp_path)
    assert sorted(row["id"] for row in lines(tmp_path)) == [item.id for item in plan(vqa_data).items[::2]]
    with served(lambda request: "no") as script:
        assert run(engine(script.url), vqa_data, tmp_path).num_kept == len(lucky)


def test_a_question_that_never_gets_an_answer_does_not_fail_the_other_runs(
    vqa_data: Path, tmp_path: Path
) -> None:
    unlucky = plan(vqa_data).items[3].question

    def answer(request: dict[str, Any]) -> Trouble:
        return body_of(None) if unlucky in str(request["messages"][0]["content"][1]) else "yes"

    with served(answer) as script:
        assert not run(engine(script.url), vqa_data, tmp_path).has_failed
        again = run(engine(script.url), vqa_data, tmp_path)
    assert (again.num_asked, len(again.errors), again.has_failed) == (1, 1, False)


def test_a_server_that_speaks_no_chat_api_stops_the_run(vqa_data: Path, tmp_path: Path) -> None:
    with (
        served(lambda request: "garbage") as script,
        pytest.raises(EngineError, match="none of the first 16 replies could be read"),
    ):
        run(engine(script.url), vqa_data, tmp_path)


def test_a_broken_image_costs_its_questions_at_a_server_too(tmp_path: Path) -> None:
    data = write_vqa(tmp_path / "data", num_questions=6, num_images=3)
    (data / "coco" / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"no image")
    with served(lambda request: "yes") as script:
        outcome = run(engine(script.url), data, tmp_path / "out")
    assert sorted(outcome.errors) == ["1001", "1004"]


def test_a_question_that_the_server_refuses_is_recorded(vqa_data: Path, tmp_path: Path) -> None:
    with served(lambda request: "yes", [400]) as script:
        outcome = run(engine(script.url), vqa_data, tmp_path, limit=3)
    assert len(outcome.errors) == 1
    assert [row.error for row in read(tmp_path).by_id.values() if row.error] == list(outcome.errors.values())


def test_likelihoods_cannot_be_had_from_a_server() -> None:
    prompt = Prompt("1", [{"role": "user", "content": "?"}], "", Decoding(1), {"A": "owl", "B": "cat"})
    with pytest.raises(EngineError, match="likelihood"):
        engine("http://127.0.0.1:9/v1").prepare([prompt])

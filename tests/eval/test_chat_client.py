"""The chat client: troubles that pass are waited for, others stop at once with what the server said."""

import subprocess
import sys
import time
import traceback

import pytest

from owl2.errors import Owl2Error
from owl2.eval.engines.chat_client import ChatClient, EndpointError, NoAnswerError
from tests.eval.server import served

ASKED = [{"role": "user", "content": "What is this?"}]


def client(url: str, **settings: float) -> ChatClient:
    return ChatClient(url, "judge", **{"first_wait_s": 0.01, "timeout_s": 0.5, **settings})  # type: ignore[arg-type]


def test_overload_errors_garbage_and_silence_are_tried_again() -> None:
    with served(lambda request: "an owl", [429, 500, "garbage", "silence"]) as script:
        completion = client(script.url).complete(ASKED, max_tokens=3)
    assert (completion.text, completion.model) == ("an owl", "judge-2026")
    assert (completion.prompt_tokens, completion.new_tokens) == (11, 2)
    assert len(script.requests) == 5
    assert script.requests[0] == {"model": "judge", "messages": ASKED, "max_tokens": 3}


def test_retry_after_is_obeyed_up_to_the_longest_wait() -> None:
    with served(lambda request: "an owl", [429], retry_after="0.4") as script:
        begin = time.perf_counter()
        client(script.url).complete(ASKED)
        assert time.perf_counter() - begin > 0.4
    with served(lambda request: "an owl", [429], retry_after="3600") as script:
        client(script.url, longest_wait_s=0.05).complete(ASKED)


def test_a_server_that_never_recovers_is_an_error_with_its_last_words() -> None:
    with (
        served(lambda request: "", [503] * 9) as script,
        pytest.raises(EndpointError, match=r"no answer in 3 tries.*503.*as the script says"),
    ):
        client(script.url, max_tries=3).complete(ASKED)
    assert len(script.requests) == 3


def test_what_another_try_cannot_mend_stops_at_once() -> None:
    for status, hint in ((401, "OPENAI_API_KEY"), (404, "'judge' served there")):
        with served(lambda request: "", [status]) as script, pytest.raises(EndpointError, match=hint):
            client(script.url).complete(ASKED)
        assert len(script.requests) == 1
    with served(lambda request: "", [400]) as script, pytest.raises(NoAnswerError, match="400"):
        client(script.url).complete(ASKED)


def test_no_server_at_all_is_an_error_that_names_the_address() -> None:
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9.*2 tries"):
        client("http://127.0.0.1:9/v1", max_tries=2).complete(ASKED)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "api.example.org/v1",
        "htp://localhost:8000/v1",
        "http//localhost:8000/v1",
        "http:/localhost:8000/v1",
        "http://localhost:80o0/v1",
        "http://localhost:0/v1",
        "http://local host/v1",
        "http://",
        "",
    ],
)
def test_an_address_that_no_server_can_have_fails_before_any_request(url: str) -> None:
    with pytest.raises(EndpointError, match=r"no address of a server.*http://localhost:8000/v1"):
        client(url)


def test_a_password_in_the_address_is_not_shown() -> None:
    asked = client("http://me:secret@127.0.0.1:9/v1", max_tries=1)
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1") as caught:
        asked.complete(ASKED)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_repeats_is_not_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    trouble = (status, b'{"error": "wrong key sk-verysecret, or a full disk"}')
    with (
        served(lambda request: trouble) as script,
        pytest.raises(Owl2Error, match=r"wrong key \*\*\*, or a full disk") as caught,
    ):
        client(script.url, max_tries=2).complete(ASKED)
    assert "verysecret" not in "".join(traceback.format_exception(caught.value))


def test_a_key_is_sent_without_the_white_space_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "  sk-verysecret\r\n")
    with served(lambda request: "an owl") as script:
        client(script.url).complete(ASKED)
    assert script.headers[0]["Authorization"] == "Bearer sk-verysecret"
    for broken in ("sk-very\nsecret", "sk-verysécret"):
        monkeypatch.setenv("OPENAI_API_KEY", broken)
        with pytest.raises(EndpointError, match="OPENAI_API_KEY holds a line break") as caught:
            client(script.url)
        assert "sk-" not in str(caught.value)


def test_a_request_that_is_no_unicode_has_no_answer() -> None:
    with served(lambda request: "an owl") as script, pytest.raises(NoAnswerError, match="cannot be sent"):
        client(script.url).complete([{"role": "user", "content": "what is \ud83d"}])


def test_the_package_is_imported_only_where_a_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, owl2.eval.engines.endpoint, owl2.eval.judge.grading; print('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"needs the package openai: pip install 'owl2\[endpoint\]'"):
        client("http://127.0.0.1:9/v1")


def test_the_key_is_sent_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda request: "an owl") as script:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        client(script.url).complete(ASKED)
        monkeypatch.setenv("OPENAI_API_KEY", "a key")
        client(script.url).complete(ASKED)
    assert [headers.get("Authorization") for headers in script.headers] == [None, "Bearer a key"]

"""`owl2 chat`: one answer on standard output, or a dialogue; a mistake is one line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import owl2
from owl2.__main__ import main
from owl2.checkpoint import save_checkpoint
from owl2.cli.chat import chat
from owl2.processor import ImageTransform, Processor, SentencePieceTokenizer
from tests.model.tiny import tiny_model
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)


@pytest.fixture
def folder(tmp_path: Path, sentencepiece_tokenizer: SentencePieceTokenizer) -> Path:  # noqa: F811
    tokenizer = sentencepiece_tokenizer
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=200)
    processor = Processor(
        tokenizer,
        ImageTransform(size=56),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
    )
    save_checkpoint(model, tmp_path / "checkpoint", processor=processor)
    return tmp_path / "checkpoint"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (30, 20), "green").save(tmp_path / "green.png")
    return tmp_path / "green.png"


def content(text: str, *images: Path) -> list[dict[str, object]]:
    return [*({"type": "image", "image": path} for path in images), {"type": "text", "text": text}]


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """Let `input` return these lines, raise these exceptions, and then end."""
    left: Iterator[str | type[BaseException]] = iter(lines)

    def read(prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)


def answers(output: str) -> list[str]:
    return [part.split("\n")[0] for part in output.split("Owl2: ")[1:]]


def test_a_message_prints_the_answer_alone(
    folder: Path, image: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(str(folder), image=[str(image)] * 2, message="What <|image|>?", max_new_tokens=12)
    owl = owl2.load(folder, progress=False)
    messages = [{"role": "user", "content": content("What <|image|>?", image, image)}]
    assert capfd.readouterr().out == owl.chat(messages, max_new_tokens=12) + "\n"


def test_a_system_prompt_is_the_same_on_the_command_line_in_a_dialogue_and_in_python(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(str(folder), system="two owls", message="Hello", max_new_tokens=12)
    said = capfd.readouterr().out
    owl = owl2.load(folder, progress=False)
    messages = [{"role": "system", "content": "two owls"}, {"role": "user", "content": "Hello"}]
    assert said == owl.chat(messages, max_new_tokens=12) + "\n" != owl.chat("Hello", max_new_tokens=12) + "\n"
    session = owl.session(system="two owls")
    first = "".join(session.say("Hello", max_new_tokens=12))
    session.reset()
    assert first == "".join(session.say("Hello", max_new_tokens=12)) == said.removesuffix("\n")
    type_in(monkeypatch, "Hello", "/reset", "Hello")
    chat(str(folder), system="two owls", max_new_tokens=12)
    first, again = answers(capfd.readouterr().out)
    assert first == again == said.split("\n")[0]


def test_an_answer_that_is_cut_off_says_so_on_standard_error(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(str(folder), message="Hello", max_new_tokens=1)
    assert "--max_new_tokens" in capfd.readouterr().err


def test_a_temperature_draws_and_its_seed_repeats(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(**settings: float) -> str:
        chat(str(folder), message="Hello", max_new_tokens=12, **settings)
        return capfd.readouterr().out

    assert run(temperature=2.0, seed=1) == run(temperature=2.0, seed=1)
    assert run(temperature=2.0, seed=1) != run(temperature=2.0, seed=2)
    assert run(temperature=0.0) == run()


def test_a_dialogue_remembers_shows_images_and_starts_over(
    folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hello", "", f"/image {image}", "What is it?", "/reset", "Hello", "/quit", "no")
    chat(str(folder), max_new_tokens=6)
    first, second, third = answers(capfd.readouterr().out)
    session = owl2.load(folder, progress=False).session()
    assert first == "".join(session.say("Hello", max_new_tokens=6)).split("\n")[0]
    assert second == "".join(session.say(content("What is it?", image), max_new_tokens=6)).split("\n")[0]
    assert third == first


def test_a_mistake_in_a_dialogue_is_a_line_and_the_dialogue_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = [f"/image {tmp_path}/none.png", f"/image {tmp_path}", "/rest", "word " * 300, "caf\udce9"]
    type_in(monkeypatch, *bad, "/help", "Hello")
    chat(str(folder), max_new_tokens=6)
    out, err = capfd.readouterr()
    assert len(answers(out)) == 1
    assert out.count("/image PATH (or URL) shows") == 2, "at the start, and as asked"
    assert "the line is not UTF-8 text" in err
    assert "none.png" in err
    assert "/rest is no command" in err
    assert "200" in err


def test_an_image_is_shown_by_its_path_as_typed_quoted_or_dropped_and_its_size_is_said(
    folder: Path,
    tmp_path: Path,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "my owl's (2).png"
    image.rename(other)
    dropped = str(other).translate({ord(sign): f"\\{sign}" for sign in " '()"})
    type_in(monkeypatch, f"/image {other}", f'/image "{other}"', f"/image {dropped}", "What?", "/reset")
    chat(str(folder), max_new_tokens=6)
    out, err = capfd.readouterr()
    assert err.count("30 x 20 pixels") == 3
    assert "the next message shows 3 images" in err
    assert "no image is shown" in err
    owl = owl2.load(folder, progress=False)
    assert answers(out) == [owl.chat("What?", images=[other] * 3, max_new_tokens=6).split("\n")[0]]


def test_lines_from_a_pipe_are_answered_with_the_answers_alone(folder: Path, image: Path) -> None:
    words = [sys.executable, "-m", "owl2", "chat", str(folder), "--max_new_tokens", "6"]
    lines = f"Hello\n/image {image}\nWhat is it?\n"
    run = subprocess.run(words, input=lines, capture_output=True, text=True, check=True)
    session = owl2.load(folder, progress=False).session()
    first = "".join(session.say("Hello", max_new_tokens=6))
    second = "".join(session.say(content("What is it?", image), max_new_tokens=6))
    assert run.stdout == f"{first}\n{second}\n"


def test_why_shows_each_tokens_probability_with_the_image_and_with_a_blank_one(
    folder: Path, image: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chat(str(folder), image=[str(image)], message="What?", max_new_tokens=6, why=True)
    answer, table = capfd.readouterr().out.split("\n\n", 1)
    owl = owl2.load(folder, progress=False)
    why = owl.why("What?", images=[image], max_new_tokens=6)
    assert answer == why.answer == owl.chat("What?", images=[image], max_new_tokens=6)
    rows = [line.rsplit(maxsplit=2) for line in table.splitlines()[1:-1]]
    assert [(seen, blank) for _, seen, blank in rows] == [
        (f"{token.probability:.1%}", f"{token.blank_probability:.1%}") for token in why.tokens
    ]
    assert table.splitlines()[-1] == f"With blank images: {why.blank_answer}"


def test_ctrl_c_stops_the_answer_and_not_the_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from owl2.generate import ChatSession

    answer, stops = ChatSession.answer, [True]

    def interrupted(self: ChatSession, messages: list[object], **settings: object) -> Iterator[str]:
        for piece in answer(self, messages, **settings):
            yield piece
            if stops.pop() if stops else False:
                raise KeyboardInterrupt

    monkeypatch.setattr(ChatSession, "answer", interrupted)
    type_in(monkeypatch, KeyboardInterrupt, "Hello", "Hello again")
    chat(str(folder), max_new_tokens=12)
    out, _ = capfd.readouterr()
    assert "(/quit leaves)" in out
    assert "(stopped)" in answers(out)[0]
    assert len(answers(out)) == 2


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--image", "none.png"], "none.png", 1),
        (["--top_p", "2"], "top_p = 2.0", 1),
        (["--device", "warp"], "warp", 1),
        (["--dtype", "int7"], "'int7' is not one of float32", 2),
        (["--max-new-tokens", "500"], "context has 200 tokens", 1),
        (["-m", "word " * 300], "context is 200", 1),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_1_or_2(
    folder: Path, words: list[str], message: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["chat", str(folder), "-m", "Hello", *words])
    out, err = capfd.readouterr()
    assert stopped.value.code == code
    assert out == ""
    assert message in err
    assert err.startswith("owl2 chat: ")
    assert err.count("\n") == 1


def test_a_folder_that_is_no_checkpoint_is_one_line_and_exit_code_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(SystemExit, match="1"):
            main(["chat", str(name), "--message", "Hello"])
        assert capfd.readouterr().err.startswith(f"owl2 chat: {name}")

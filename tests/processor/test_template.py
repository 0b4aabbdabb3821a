"""Templates: the release's layouts as chunks, user text that stays text, errors that name the turn."""

import pytest

from owl2.processor import Chunk, TemplateError, render
from owl2.processor.template import images_of

IMAGE = {"type": "image", "image": "owl.png"}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(*content: object) -> dict[str, object]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


def flat(chunks: list[Chunk]) -> str:
    """The prompt as the release writes it before tokenisation."""
    marks = {"bos": "", "eos": "</s>", "image": "<|image|>"}
    return "".join(marks.get(chunk.kind, (" " if chunk.space else "") + chunk.text) for chunk in chunks)


TWO_TURNS = [user(IMAGE, text("What is this?")), assistant("An owl."), user("What colour?")]


def test_the_inference_layout_is_that_of_the_release_without_a_system_sentence() -> None:
    assert flat(render(TWO_TURNS, generation_prompt=True)) == (
        "USER: <|image|>What is this? ASSISTANT: An owl.</s>USER: What colour? ASSISTANT:"
    )


def test_the_training_layout_has_the_system_sentence_once_and_a_newline_after_the_image() -> None:
    assert flat(render(TWO_TURNS, "vicuna_v1", generation_prompt=True)) == (
        f"{SYSTEM}USER: <|image|>\nWhat is this? ASSISTANT: An owl.</s>USER: What colour? ASSISTANT:"
    )


def test_the_training_layout_moves_images_to_the_front_of_their_turn_and_keeps_all() -> None:
    messages = [user(text(" Compare "), IMAGE, text(" with "), IMAGE)]
    assert flat(render(messages, "vicuna_v1")) == f"{SYSTEM}USER: <|image|><|image|>\nCompare  with"
    assert flat(render([user(IMAGE)], "vicuna_v1")) == f"{SYSTEM}USER: <|image|>"


def system(content: object) -> dict[str, object]:
    return {"role": "system", "content": content}


def test_a_system_prompt_takes_the_place_of_the_layouts_own_or_is_a_line_above_the_first_question() -> None:
    prompted = [system("Be brief."), *TWO_TURNS]
    rest = "What is this? ASSISTANT: An owl.</s>USER: What colour? ASSISTANT:"
    assert flat(render(prompted, "vicuna_v1", generation_prompt=True)) == f"Be brief. USER: <|image|>\n{rest}"
    assert flat(render(prompted, generation_prompt=True)) == f"USER: Be brief.\n<|image|>{rest}"
    assert render([system([text("Be "), text("brief.")]), *TWO_TURNS]) == render(prompted)


def test_a_system_prompt_in_the_inference_layout_is_the_same_as_text_typed_above_the_image() -> None:
    typed = [user(text("Be brief.\n"), IMAGE, text("What is this?")), *TWO_TURNS[1:]]
    assert render([system("Be brief."), *TWO_TURNS]) == render(typed)


@pytest.mark.parametrize("template", ["mplug_owl2", "vicuna_v1"])
def test_a_chat_with_a_system_prompt_begins_as_in_training(template: str) -> None:
    messages = [system("Be brief."), *TWO_TURNS]
    asked = render(messages, template, generation_prompt=True)
    trained = render([*messages, assistant("Brown.")], template)
    assert trained[: len(asked)] == asked


@pytest.mark.parametrize("template", ["mplug_owl2", "vicuna_v1"])
def test_an_empty_system_prompt_is_none(template: str) -> None:
    assert render([system(""), *TWO_TURNS], template) == render(TWO_TURNS, template)


def test_the_inference_layout_leaves_images_where_they_are() -> None:
    messages = [user(text("Compare "), IMAGE, text(" with "), IMAGE, text(" now."))]
    assert flat(render(messages, generation_prompt=True)) == (
        "USER: Compare <|image|> with <|image|> now. ASSISTANT:"
    )


def test_a_question_and_the_assistants_name_are_one_chunk() -> None:
    kinds = [(chunk.kind, chunk.text) for chunk in render(TWO_TURNS, generation_prompt=True)]
    assert kinds == [
        ("bos", ""),
        ("text", "USER: "),
        ("image", ""),
        ("text", "What is this? ASSISTANT:"),
        ("text", "An owl."),
        ("eos", ""),
        ("text", "USER: What colour? ASSISTANT:"),
    ]


def test_only_answers_and_their_end_tokens_are_targets() -> None:
    targets = [chunk for chunk in render([*TWO_TURNS, assistant("Brown.")]) if chunk.is_target]
    assert [(chunk.kind, chunk.text, chunk.space) for chunk in targets] == [
        ("text", "An owl.", True),
        ("eos", "", False),
        ("text", "Brown.", True),
        ("eos", "", False),
    ]


def test_marks_typed_by_a_user_are_text() -> None:
    chunks = render([user("say <|image|> and </s>")], generation_prompt=True)
    assert [chunk.kind for chunk in chunks] == ["bos", "text"]
    assert chunks[1].text == "USER: say <|image|> and </s> ASSISTANT:"


def test_an_unanswered_last_question_asks_for_no_answer_without_generation_prompt() -> None:
    assert flat(render([user("Hello")])) == "USER: Hello"


def test_neighbouring_parts_of_text_are_one_text() -> None:
    assert flat(render([user(text("an "), text("owl")), assistant([text("a"), text("b")])])) == (
        "USER: an owl ASSISTANT: ab</s>"
    )


def test_images_are_listed_in_the_order_of_their_chunks() -> None:
    messages = [
        user({**IMAGE, "image": 1}, text("x"), {**IMAGE, "image": 2}),
        assistant("y"),
        user({**IMAGE, "image": 3}),
    ]
    assert images_of(messages) == [1, 2, 3]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "no turns"),
        ([assistant("hi")], "turn 1 of 1 has the role 'assistant', expected 'user'"),
        ([user("a"), user("b")], "turn 2 of 2 has the role 'user', expected 'assistant'"),
        ([user("a"), {"role": "system", "content": "x"}], "turn 2 of 2 has the role 'system'"),
        ([{"role": "system", "content": "x"}], "no turns but its system prompt"),
        ([{"role": "system", "content": "x"}, assistant("a")], "turn 2 of 2 has the role 'assistant'"),
        ([{"role": "system", "content": [IMAGE]}, user("a")], "a system prompt cannot hold an image"),
        ([{"content": "x"}], "turn 1 of 1 has the role None"),
        ([user("a"), assistant([IMAGE])], r"turn 2 \(assistant\): an answer cannot hold an image"),
        ([{"role": "user", "content": None}], r"turn 1 \(user\): content is NoneType"),
        ([user({"type": "video"})], r"turn 1 \(user\): .*'video'.* is not a part"),
        ([user({"type": "text"})], "is not a part"),
        ([user({"type": "image", "image": None})], "is not a part"),
        ([{"role": "user", "content": ["bare"]}], "'bare' is not a part"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_an_error_that_names_the_turn(
    messages: list[dict[str, object]], complaint: str
) -> None:
    with pytest.raises(TemplateError, match=complaint):
        render(messages)


def test_asking_for_an_answer_after_an_answer_is_an_error() -> None:
    with pytest.raises(TemplateError, match="turn 2 is the assistant's"):
        render([user("a"), assistant("b")], generation_prompt=True)


def test_an_unknown_template_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(TemplateError, match="unknown template 'vicuna'; nearest is 'vicuna_v1'"):
        render([user("a")], "vicuna")

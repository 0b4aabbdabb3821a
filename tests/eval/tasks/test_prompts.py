"""The wordings letter by letter, as they were published: a changed blank or apostrophe changes scores."""

import pytest

from owl2.data.sample import StoredImage
from owl2.eval.task import Item, Template
from owl2.eval.tasks import prompts
from owl2.processor.template import render

IMAGE = StoredImage("a.png", lambda: b"")
ITEM = Item(
    id="1",
    question="Which one?",
    images=(IMAGE,),
    choices={"A": "red", "B": "None"},
    extra={"hint": "Look."},
)
BARE = Item(id="2", question="Which one?", images=(IMAGE,), choices={"A": "red", "B": "None"})
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option’s letter from the given choices directly."


def shown(template: Template, item: Item) -> str:
    chunks = render(template.messages(item), generation_prompt=True, answer_prefix=template.answer_prefix)
    return "".join("<|image|>" if chunk.kind == "image" else chunk.text for chunk in chunks)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (prompts.VQA["owl2-2023"], f"Which one?\n{SHORT} ASSISTANT:"),
        (prompts.VQA["owl2-2024"], f"Which one? {SHORT} ASSISTANT: "),
        (Template("x", prompts.short_answer_below, " "), f"Which one?\n{SHORT} ASSISTANT: "),
        (
            prompts.CAPTIONS["owl2-2023"],
            "Provide a one-sentence caption for the provided image. ASSISTANT:",
        ),
        (
            prompts.CAPTIONS["owl2-2024"],
            "Provide a one-sentence caption for the provided image. ASSISTANT: ",
        ),
        (
            prompts.CHOICE["owl2-2023"],
            f"Look.\nWhich one?\nA. red\nB. None\n{LETTER} ASSISTANT:",
        ),
        (
            prompts.CHOICE["owl2-2024"],
            f"Look.\nWhich one?\nA. red\nB. None\n{LETTER} ASSISTANT: ",
        ),
        (
            Template("x", prompts.multiple_choice_vlmevalkit),
            f"Hint: Look.\nWhich one?\nA. red\nB. None\n\n{LETTER}  ASSISTANT:",
        ),
        (Template("x", prompts.bare_question), "Which one? ASSISTANT:"),
    ],
)
def test_the_authors_prompts_are_shown_in_their_very_words(template: Template, expected: str) -> None:
    assert shown(template, ITEM) == f"USER: <|image|>{expected}"


def test_a_missing_hint_is_na_for_the_authors_and_nothing_for_others() -> None:
    question = "Which one?\nA. red\nB. None\n"
    assert prompts.multiple_choice(BARE)[0]["content"][1]["text"] == f"N/A\n{question}{LETTER}"
    assert prompts.multiple_choice_vlmevalkit(BARE)[0]["content"][1]["text"].startswith(question)
    llava = prompts.multiple_choice_llava(BARE)[0]["content"][1]["text"]
    assert llava == f"{question}Answer with the option's letter from the given choices directly."


def test_images_stand_before_the_words_and_text_alone_has_none() -> None:
    several = Item(id="3", question="What?", images=(IMAGE, IMAGE))
    assert shown(Template("x", prompts.bare_question), several) == "USER: <|image|><|image|>What? ASSISTANT:"
    none = Item(id="4", question="What?")
    assert shown(Template("x", prompts.bare_question), none) == "USER: What? ASSISTANT:"


def test_a_mark_in_a_question_is_only_text() -> None:
    item = Item(id="5", question="What is <|image|>?", images=(IMAGE,))
    kinds = [chunk.kind for chunk in render(prompts.short_answer(item), generation_prompt=True)]
    assert kinds.count("image") == 1

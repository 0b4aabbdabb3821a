"""Prompts that several tasks share: functions from an item to the user's turn, and the released versions.

Wordings are facts, taken letter by letter from where they were published, typographic apostrophes and line
breaks included, because scores move by points with them. The authors' evaluation scripts changed after the
paper, so every task has two versions (history of X-PLUG/mPLUG-Owl, folder mPLUG-Owl2):

- `owl2-2023`, the default: 9 November 2023, the paper's date. Prompts end in `ASSISTANT:`.
- `owl2-2024`: 7 February 2024, release 2.1 and today's. Prompts end in `ASSISTANT: `, with a blank; questions
  with short answers lose a line break and their 5 beams; captions may have 60 tokens instead of 30.

In between (1 February) lies a version with the blank and everything else of 2023, which has no name here. A
template that only follows a published one says so in its `source`. Images come before the words; a video's
frames are the item's `images` by the time these functions see it. The conversation around the turn
(`USER: ... ASSISTANT:`) is the checkpoint's own, for wordings of other projects too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from owl2.data.recipes.wording import CAPTION, LETTER, SHORT
from owl2.eval.task import Decoding, Item, Template
from owl2.processor.template import Message

BLANK = " "
"""How the prompts of 2024 end."""
LETTER_LLAVA = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

Templates = dict[str, Template]
"""Template by name."""
Wording = Callable[[Item], list[Message]]


def turn(item: Item, text: str) -> list[Message]:
    """One user's turn: the item's images, then this text."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in item.images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def bare_question(item: Item) -> list[Message]:
    """`{question}`."""
    return turn(item, item.question)


QUESTION_ALONE = Template("the question alone, for models trained without instructions", bare_question)


def short_answer(item: Item) -> list[Message]:
    """`{question} Answer the question using a single word or phrase.`, as evaluate_vqa.py of 2024."""
    return turn(item, f"{item.question} {SHORT}")


def short_answer_below(item: Item) -> list[Message]:
    """The same on a line of its own, as evaluate_vqa.py of 2023, evaluate_mme.py, LLaVA and lmms-eval."""
    return turn(item, f"{item.question}\n{SHORT}")


def short_or_unanswerable(item: Item) -> list[Message]:
    """LLaVA-1.5's VizWiz wording: how to give up, between the question and the short-answer sentence."""
    return turn(item, f"{item.question}\n{UNANSWERABLE}\n{SHORT}")


def multiple_choice(item: Item) -> list[Message]:
    """Hint or `N/A`, question, options, letter sentence, a line each, as evaluate_mmbench.py."""
    return turn(item, f"{_hint(item) or 'N/A'}\n{item.question}\n{options(item.choices)}\n{LETTER}")


def multiple_choice_vlmevalkit(item: Item) -> list[Message]:
    """`Hint: ..\\n` only if there is one, question, options, a blank line, the letter sentence and a blank.

    VLMEvalKit also breaks the line before `ASSISTANT:`; the checkpoint's conversation does not.
    """
    hint = f"Hint: {_hint(item)}\n" if _hint(item) else ""
    return turn(item, f"{hint}{item.question}\n{options(item.choices)}\n\n{LETTER} ")


def multiple_choice_llava(item: Item) -> list[Message]:
    """`{hint}\\n` only if there is one, question, options, letter sentence with a straight apostrophe."""
    hint = f"{_hint(item)}\n" if _hint(item) else ""
    return turn(item, f"{hint}{item.question}\n{options(item.choices)}\n{LETTER_LLAVA}")


def caption(item: Item) -> list[Message]:
    """The caption sentence alone, as evaluate_caption.py."""
    return turn(item, CAPTION)


def options(choices: Mapping[str, str]) -> str:
    """`A. first\\nB. second`, without a line break at the end."""
    return "\n".join(f"{letter}. {text}" for letter, text in choices.items())


def released(script: str, wording: Wording, decoding: Decoding) -> Templates:
    """Both versions of a prompt of the authors' scripts of which only the ending changed."""
    source = f"X-PLUG/mPLUG-Owl, {script} of"
    return {
        "owl2-2023": Template(f"{source} 9 November 2023", wording, decoding=decoding),
        "owl2-2024": Template(f"{source} 7 February 2024", wording, BLANK, decoding),
    }


def by_analogy(templates: Mapping[str, Template], why: str, wording: Wording | None = None) -> Templates:
    """The released versions for a benchmark of the paper whose prompt was never published.

    Args:
        why: ends the sentence "not published; ".
        wording: in place of theirs, with their endings and decoding.
    """
    return {
        name: dataclasses.replace(
            template, source=f"not published; {why}", messages=wording or template.messages
        )
        for name, template in templates.items()
        if name in ("owl2-2023", "owl2-2024")
    }


def opencompass(config: str, wording: Wording, answer_prefix: str = "", **fields: Any) -> Templates:
    """Both versions of a text benchmark: OpenCompass's default on 10 November 2023, which the paper names.

    Args:
        config: OpenCompass's name of the prompt.
        answer_prefix: the beginning of the answer that OpenCompass gives.
        fields: of `Template`.
    """
    paper = Template(
        f"OpenCompass, {config}, its default on 10 November 2023", wording, answer_prefix, **fields
    )
    source = f"OpenCompass, {config}; the ending by analogy with the authors' scripts"
    ending = answer_prefix or BLANK
    return {
        "owl2-2023": paper,
        "owl2-2024": dataclasses.replace(paper, source=source, answer_prefix=ending),
    }


VQA_2023 = Decoding(max_new_tokens=10, min_new_tokens=1, num_beams=5)
SHORT_ANSWER = Decoding(max_new_tokens=10, min_new_tokens=1)
"""Answers of a word, a phrase or a letter."""
VQA = {
    "owl2-2023": Template(
        "X-PLUG/mPLUG-Owl, evaluate_vqa.py of 9 November 2023", short_answer_below, decoding=VQA_2023
    ),
    "owl2-2024": Template(
        "X-PLUG/mPLUG-Owl, evaluate_vqa.py of 7 February 2024", short_answer, BLANK, SHORT_ANSWER
    ),
}
# No beams, so the length penalty of the scripts changes nothing; it counts where a user asks for beams.
CAPTIONS = {
    "owl2-2023": Template(
        "X-PLUG/mPLUG-Owl, evaluate_caption.py of 9 November 2023",
        caption,
        decoding=Decoding(max_new_tokens=30, min_new_tokens=8, length_penalty=0.0),
    ),
    "owl2-2024": Template(
        "X-PLUG/mPLUG-Owl, evaluate_caption.py of 7 February 2024",
        caption,
        BLANK,
        Decoding(max_new_tokens=60, min_new_tokens=8, length_penalty=0.0),
    ),
}
CHOICE = released("evaluate_mmbench.py", multiple_choice, SHORT_ANSWER)
CHOICE_VLMEVALKIT = Template("VLMEvalKit, vlm/mplug_owl2.py", multiple_choice_vlmevalkit, BLANK)
"""Multiple choice in the authors' wrapper for VLMEvalKit."""


def _hint(item: Item) -> str:
    return str(item.extra.get("hint", "")).strip()

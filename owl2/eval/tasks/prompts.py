"""How questions are worded, shared by the tasks: functions from an item to the user's turn.

Images stand before the words. The wordings are facts taken letter by letter from where they were
published, typographic apostrophes and missing line breaks included, because scores move by points with
them; what a task uses by analogy only, its template's `source` says. A video's frames are the item's
`images` by the time these functions see it (the runner puts them there). The conversation around the turn
(`USER: ... ASSISTANT:`) is the checkpoint's own, for wordings of other projects too.
"""

from collections.abc import Callable, Mapping
from typing import Any

from owl2.data.recipes.wording import CAPTION, LETTER, SHORT
from owl2.eval.task import Item, Template
from owl2.processor.template import Message

LETTER_LLAVA = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def turn(item: Item, text: str) -> list[Message]:
    """Return one user's turn: the item's images, then this text."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in item.images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def bare_question(item: Item) -> list[Message]:
    """`{question}`."""
    return turn(item, item.question)


def short_answer(item: Item) -> list[Message]:
    """`{question} Answer the question using a single word or phrase.`, as evaluate_vqa.py."""
    return turn(item, f"{item.question} {SHORT}")


def short_answer_below(item: Item) -> list[Message]:
    """The same on a line of its own, as evaluate_mme.py, LLaVA and lmms-eval."""
    return turn(item, f"{item.question}\n{SHORT}")


def short_or_unanswerable(item: Item) -> list[Message]:
    """LLaVA-1.5's VizWiz wording: between question and the short-answer sentence, when to give up."""
    return turn(item, f"{item.question}\n{UNANSWERABLE}\n{SHORT}")


def multiple_choice(item: Item) -> list[Message]:
    """Hint or `N/A`, question, options, the letter sentence, a line each, as evaluate_mmbench.py."""
    return turn(item, f"{_hint(item) or 'N/A'}\n{item.question}\n{options(item.choices)}\n{LETTER}")


def multiple_choice_vlmevalkit(item: Item) -> list[Message]:
    """`Hint: ..\\n` only if there is one, question, options, a blank line, the letter sentence and a space.

    VLMEvalKit also breaks the line before `ASSISTANT:`; the checkpoint's conversation does not.
    """
    hint = f"Hint: {_hint(item)}\n" if _hint(item) else ""
    return turn(item, f"{hint}{item.question}\n{options(item.choices)}\n\n{LETTER} ")


def multiple_choice_llava(item: Item) -> list[Message]:
    """`{hint}\\n` only if there is one, question, options, the letter sentence with a straight apostrophe."""
    hint = f"{_hint(item)}\n" if _hint(item) else ""
    return turn(item, f"{hint}{item.question}\n{options(item.choices)}\n{LETTER_LLAVA}")


def caption(item: Item) -> list[Message]:
    """The caption sentence alone, as evaluate_caption.py."""
    return turn(item, CAPTION)


def options(choices: Mapping[str, str]) -> str:
    """`A. first\\nB. second`, without a line break at the end."""
    return "\n".join(f"{letter}. {text}" for letter, text in choices.items())


VLMEVALKIT_CHOICE = Template("VLMEvalKit, vlm/mplug_owl2.py", multiple_choice_vlmevalkit, answer_prefix=" ")
"""Multiple choice as the authors' wrapper for VLMEvalKit asks it."""


def published(messages: Callable[[Item], list[Message]], script: str) -> Template:
    """A template of the authors' evaluation scripts: their prompts end in `ASSISTANT: `, with a space.

    Not evaluate_mmbench.py, which has no space there: it is `Template(..., answer_prefix="")`.
    """
    return Template(f"X-PLUG/mPLUG-Owl, {script}", messages, answer_prefix=" ")


def by_analogy(messages: Callable[[Item], list[Message]], script: str) -> Template:
    """A template for a benchmark of the paper whose prompt was never published."""
    return Template(f"not published; by analogy with {script}", messages, answer_prefix=" ")


def _hint(item: Item) -> str:
    return str(item.extra.get("hint", "")).strip()

"""Judge prompts, and how the replies are read: MM-Vet, MMHal-Bench, Video-ChatGPT.

Wordings and settings are the official scripts'. Reading is stricter than theirs: a reply that cannot be read
has no grade, where they take 0 or ask forever.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from owl2.eval.task import Item

FOLDER = Path(__file__).parent / "texts"

VIDEO_SYSTEM = (
    "You are an intelligent chatbot designed for evaluating the correctness of generative outputs for "
    "question-answer pairs. Your task is to compare the predicted answer with the correct answer and "
    "determine if they match meaningfully. Here's how you can accomplish the task:"
    "------"
    "##INSTRUCTIONS: "
    "- Focus on the meaningful match between the predicted answer and the correct answer.\n"
    "- Consider synonyms or paraphrases as valid matches.\n"
    "- Evaluate the correctness of the prediction compared to the answer."
)
VIDEO_REQUEST = (
    "Provide your evaluation only as a yes/no and score where the score is an integer value between 0 and 5, "
    "with 5 indicating the highest meaningful match. "
    "Please generate the response in the form of a Python dictionary string with keys 'pred' and 'score', "
    "where value of 'pred' is  a string of 'yes' or 'no' and value of 'score' is in INTEGER, not STRING."
    "DO NOT PROVIDE ANY OTHER OUTPUT TEXT OR EXPLANATION. Only provide the Python dictionary string. "
    "For example, your response should look like this: {'pred': 'yes', 'score': 4.8}."
)


@dataclass(frozen=True)
class Judge:
    """How answers of a benchmark are graded."""

    source: str
    model: str
    """The model that the official script asks."""
    ask: Callable[[Item, str, int], tuple[list[dict[str, str]], dict[str, Any]]]
    """Item, answer and number of the attempt -> messages and settings of the request."""
    read: Callable[[str], Mapping[str, float] | None]
    """Reply -> figures by name; None if it has none."""
    new_tokens: int
    """Typical length of a reply, for the estimate."""


def ask_mmvet(item: Item, output: str, attempt: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The few-shot table with an open last cell; later attempts ask for a digit at rising temperature."""
    truth = item.references[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    text = prompt_text("mmvet") + " | ".join([item.question, truth, output, ""])
    if attempt:
        text += "\nPredict the correctness of the answer (digit): "
    settings = {"max_tokens": 3, "temperature": min(2.0, 0.5 * max(0, attempt - 1))}
    return [{"role": "user", "content": text}], settings


def read_mmvet(reply: str) -> dict[str, float] | None:
    """A number from 0 to 1 as the first word."""
    try:
        score = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return {"score": score} if 0.0 <= score <= 1.0 else None


def ask_mmhal(item: Item, output: str, attempt: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The examples, then the answer to judge."""
    parts = {
        "Image Contents": ", ".join(item.extra["image_content"]),
        "Question": item.question,
        "Standard Human-Generated Answer": item.references[0],
        "LMM Response to Evaluate": output,
    }
    text = prompt_text("mmhal") + "\n\n".join(f"### {name}\n{part}" for name, part in parts.items()) + "\n"
    return [{"role": "user", "content": text}], {"temperature": 0.0 if attempt == 0 else 0.5}


def read_mmhal(reply: str) -> dict[str, float] | None:
    """`Rating: 4`: exactly one of 0 to 6 must be named."""
    found = {rating for rating in range(7) if f"rating: {rating}" in reply.lower()}
    return {"rating": float(found.pop())} if len(found) == 1 else None


def ask_video(item: Item, output: str, attempt: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Question, right and predicted answer. The official script leaves the temperature to the server."""
    text = (
        "Please evaluate the following video-based question-answer pair:\n\n"
        f"Question: {item.question}\nCorrect Answer: {item.references[0]}\nPredicted Answer: {output}\n\n"
        f"{VIDEO_REQUEST}"
    )
    return [{"role": "system", "content": VIDEO_SYSTEM}, {"role": "user", "content": text}], {}


def read_video(reply: str) -> dict[str, float] | None:
    """A dictionary with `pred` and `score`, as Python or JSON, alone or inside other text."""
    found = re.search(r"\{.*\}", reply, re.DOTALL)
    values = _dictionary(found[0]) if found else None
    return None if values is None else video_grade(values)


def video_grade(values: Mapping[str, Any]) -> dict[str, float] | None:
    """`{"pred": "yes", "score": 4}` as figures; decimals of a score are cut off, as the official script
    does."""
    said = str(values.get("pred", "")).lower()
    is_yes, is_no = "yes" in said, "no" in said
    try:
        score = float(int(float(values.get("score", ""))))
    except (TypeError, ValueError, OverflowError):  # the last for an infinite score
        return None
    if is_yes == is_no or not 0 <= score <= 5:
        return None
    return {"is_right": float(is_yes), "score": score}


def _dictionary(text: str) -> Mapping[str, Any] | None:
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        return values if isinstance(values, dict) else None
    return None


@cache
def prompt_text(name: str) -> str:
    """The fixed part of a judge's prompt, with the blank line after it."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").rstrip("\n") + "\n\n"


JUDGES = {
    "mmvet": Judge("MM-Vet, mm-vet_evaluator.py", "gpt-4-0613", ask_mmvet, read_mmvet, 3),
    "mmhal": Judge("LLaVA-RLHF, Eval/eval_gpt_mmhal.py", "gpt-4-0314", ask_mmhal, read_mmhal, new_tokens=120),
    "video_chatgpt": Judge(
        "Video-ChatGPT, quantitative_evaluation/evaluate_activitynet_qa.py",
        "gpt-3.5-turbo-0301",
        ask_video,
        read_video,
        new_tokens=20,
    ),
}
"""By the name that a task's `judge` gives."""

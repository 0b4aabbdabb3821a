"""Why a model answered: the probability of each token, and what it would have said without seeing.

A token that is as probable with blank images comes from the text alone. Attention shows where a model looks;
this shows what the images change.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from owl2.generate.likelihoods import token_log_likelihoods
from owl2.generate.session import ChatSession
from owl2.processor import Message, with_blank_images


@dataclass(frozen=True)
class TokenWhy:
    """A token of the answer."""

    text: str
    probability: float
    """Given the conversation and the tokens before it, 0 to 1."""
    blank_probability: float
    """The same with blank images in place of all images; equal without images."""


@dataclass(frozen=True)
class Why:
    """An answer explained."""

    answer: str
    tokens: tuple[TokenWhy, ...]
    blank_answer: str
    """The greedy answer to the same conversation with blank images."""


def explain(session: ChatSession, messages: Sequence[Message], answer: str, **settings: Any) -> Why:
    """Explain an answer to a conversation whose last turn is the user's.

    Args:
        session: a session of the model; a fresh one, as its cache is used.
        messages: see `Processor.encode`.
        answer: the text to explain, as the model gave it or any other.
        settings: of the answer with blank images, which is greedy; see `ChatSession.answer`.

    Raises:
        TemplateError, ImageError, ContextError: a conversation that cannot be encoded.
        GenerationError: no room for the answer.
    """
    processor, model = session.processor, session.model
    blank = with_blank_images(messages)
    ids = processor.tokenizer.encode(answer, space=True) if answer else []
    both: list[list[float]] = []
    for conversation in (messages, blank) if ids else ():
        batch = processor.collate([processor.encode(conversation, generation_prompt=True)])
        ((found, _),) = token_log_likelihoods(model, batch, [(0, ids)])
        both.append([math.exp(value) for value in found])
    texts = [processor.decode(ids[:n]) for n in range(len(ids) + 1)]
    pieces = [text[len(before) :] for before, text in itertools.pairwise(texts)]
    greedy = {**settings, "do_sample": False}
    return Why(
        answer,
        tuple(TokenWhy(*row) for row in zip(pieces, *both, strict=True)) if ids else (),
        "".join(session.answer(blank, **greedy)),
    )

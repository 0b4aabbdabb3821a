"""Requests of the harnesses, answered by the local engine.

Both harnesses ask for text up to a stop string, lm-evaluation-harness also for the likelihood of tokens.
Continuations of one context, such as the letters A to D after a question, share its reading. Padding is no
token in this model, so answers do not depend on what else is in a batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from owl2.api import Owl2, load
from owl2.eval.engines.local import OwlEngine, Request, log_likelihoods
from owl2.generate.config import GenerationConfig, GenerationError
from owl2.generate.generate import check_room
from owl2.processor import Encoding

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens")
SAMPLING_NAMES = ("temperature", "top_k", "top_p")
OTHER_NAMES = ("until", "do_sample", "num_beams", "image_aspect_ratio")
"""`image_aspect_ratio` tells LLaVA how to pad images; ours are resized as the checkpoint says."""


def read_batch_size(batch_size: int | str) -> int:
    """Raises ValueError for anything but a number from 1, such as the harness's `auto`."""
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
        raise ValueError(
            f"batch_size is {batch_size!r}, expected a number from 1: owl2 does not probe memory"
        )
    return int(batch_size)


def load_once(pretrained: str | Path | Owl2, device: str, dtype: str) -> Owl2:
    """Load a checkpoint (folder or hub id), or take a loaded model as it is."""
    return pretrained if isinstance(pretrained, Owl2) else load(pretrained, device, dtype, progress=False)


def read_settings(asked: Mapping[str, Any], defaults: GenerationConfig, task: str) -> GenerationConfig:
    """Translate a harness's generation arguments.

    A temperature above 0 samples unless `do_sample` forbids it; greedy answers ignore `top_k` and `top_p`.

    Raises:
        GenerationError: an unknown argument or an impossible value; names the task.
    """
    unknown = asked.keys() - {*LENGTH_NAMES, *SAMPLING_NAMES, *OTHER_NAMES}
    if unknown:
        raise GenerationError(f"task {task} asks for {sorted(unknown)}, which owl2 does not have")
    lengths = [asked[name] for name in LENGTH_NAMES if asked.get(name) is not None]
    settings: dict[str, Any] = {"max_new_tokens": int(lengths[0])} if lengths else {}
    settings["num_beams"] = int(asked.get("num_beams") or 1)
    temperature = asked.get("temperature")
    settings["do_sample"] = bool(asked.get("do_sample", temperature)) and temperature != 0
    if settings["do_sample"]:
        settings |= {name: asked[name] for name in SAMPLING_NAMES if asked.get(name) is not None}
    until = asked.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    try:
        return defaults.replace(**settings, stop=tuple(stop for stop in stops if stop))
    except GenerationError as error:
        raise GenerationError(f"task {task}: {error}") from error


def answer_all(
    engine: OwlEngine, rows: Sequence[tuple[Encoding, GenerationConfig]], batch_size: int
) -> list[str]:
    """Answer prompts, those alike in length and settings together; the answers are in the order of `rows`.

    A prompt that leaves less room in the context than its task allows is answered within it.

    Raises:
        GenerationError: a prompt leaves no room at all; says how long it is.
    """
    requests = []
    for encoding, config in rows:
        check_room(engine.owl.model, len(encoding.ids), 1)
        requests.append(Request(encoding.ids, config, encoding.images))
    numbers = {config: number for number, (_, config) in enumerate(rows)}
    order = sorted(range(len(rows)), key=lambda i: (numbers[rows[i][1]], -len(requests[i].ids)))
    answers = [""] * len(rows)
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        replies = engine.answer(engine.open([requests[i] for i in batch]))
        for i, reply in zip(batch, replies, strict=True):
            if reply.error:
                raise GenerationError(reply.error)
            answers[i] = reply.output
    return answers


def score_continuations(
    engine: OwlEngine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[tuple[float, bool]]:
    """Return the sum of each continuation's log-probabilities, and whether greedy decoding would write it.

    Args:
        engine: the model.
        pairs: token ids of context and continuation, at least one each; text only.
        batch_size: continuations that are read together.
    """
    scores: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), tuple(pairs[i][0])))
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        contexts = list(dict.fromkeys(tuple(pairs[i][0]) for i in batch))
        rows = {context: row for row, context in enumerate(contexts)}
        inputs = engine.owl.processor.collate([Encoding([*c], [False] * len(c)) for c in contexts])
        wanted = [(rows[tuple(pairs[i][0])], pairs[i][1]) for i in batch]
        for i, score in zip(batch, log_likelihoods(engine.owl.model, inputs, wanted), strict=True):
            scores[i] = score
    return scores

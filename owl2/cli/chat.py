"""`owl2 chat`: ask a checkpoint about images, once with `-m` or in a dialogue (`dialogue.py`)."""

import sys
from pathlib import Path
from typing import Literal

from owl2.cli.values import Seed


def chat(
    checkpoint: str,
    *,
    image: list[str | Path] | None = None,
    message: str | None = None,
    system: str = "",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    seed: Seed | None = None,
    why: bool = False,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Chat with a checkpoint about images.

    With --message, only the answer (and what --why adds) goes to standard output; notes and errors go to
    standard error. In a dialogue, /help lists what else can be typed. Lines from a pipe are answered without
    prompts.

    Args:
        checkpoint: checkpoint folder, a run's adapter folder, or a Hugging Face hub id such as owner/name.
        image: path or URL of an image shown with the first message; repeat the option for several.
        message: the question, asked once; without it a dialogue begins.
        system: system prompt, such as "Answer in one word."
        temperature: sampling temperature, 0 for the most probable token; default: the checkpoint's.
        top_p: sample from the most probable tokens that together have this probability.
        top_k: sample from this many most probable tokens; 0 for all.
        max_new_tokens: longest answer in tokens; default: the checkpoint's, or what is left of its context.
        seed: number that makes sampled answers repeatable.
        why: show each token's probability, also with blank images, and the answer to those.
        device: cpu, cuda or cuda:1
        dtype: type of the weights and the computation.
    """
    from owl2.api import load
    from owl2.cli.dialogue import converse, print_answer
    from owl2.generate import GenerationConfig
    from owl2.processor import load_image

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {**sampling, "max_new_tokens": max_new_tokens, "seed": seed}
    settings = {name: value for name, value in given.items() if value is not None}
    if settings.keys() & sampling.keys():
        settings["do_sample"] = True  # temperature 0 is greedy all the same
    GenerationConfig().replace(**settings)  # what is quick to fail comes before the weights
    images = [load_image(path) for path in image or []]
    session = load(checkpoint, device, dtype, progress=sys.stderr.isatty()).session(system)
    if message is None:
        converse(session, images, settings, why=why)
    else:
        print_answer(session, images, message, settings, why=why)

"""`owl2 generate`: batch inference, a file of prompts to a file of answers."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from owl2.cli.values import Count, Seed, read_share

if TYPE_CHECKING:
    from owl2.eval.runner import Shard


def generate(
    checkpoint: str,
    source: Path,
    target: Path,
    *,
    max_new_tokens: Count = 128,
    min_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: list[str] | None = None,
    beams: Count = 1,
    seed: Seed = 0,
    batch_size: Count = 32,
    batch_tokens: Count = 8192,
    shard: str | None = None,
    image_root: Path | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Answer every row of a file; the same command continues, and order is kept.

    Rows are those of `owl2 eval run --questions`: a question with images or a video or neither, or a
    conversation. A row that cannot be asked or answered gets its reason. Under torchrun, or with --shard,
    each process answers its part, and the last one writes the file. Exit code 1 if no row has an answer.

    Args:
        checkpoint: checkpoint folder, a run's adapter folder, or a Hugging Face hub id such as owner/name.
        source: JSON lines or a JSON array of prompts.
        target: file of the answers, JSON lines, a line for each row; unfinished answers are in TARGET.parts.
        max_new_tokens: longest answer in tokens.
        min_new_tokens: shortest answer in tokens.
        temperature: sampling temperature, 0 for the most probable token; default: no sampling.
        top_p: sample from the most probable tokens that together have this probability.
        top_k: sample from this many most probable tokens; 0 for all.
        min_p: sample from tokens with at least this share of the most probable token's probability.
        repetition_penalty: above 1, tokens that are there already become less probable.
        stop: text before which an answer ends; may be repeated.
        beams: beams of a beam search; 1 for none.
        seed: number that makes sampled answers repeatable.
        batch_size: most rows answered together; answers do not depend on it.
        batch_tokens: most tokens answered together, prompts and answers.
        shard: i/n for the i-th of n parts, from 1, as for a job array; default: all, or torchrun's rank.
        image_root: folder that the paths of images are relative to; default: that of the prompts.
        device: cpu, cuda or cuda:1; under torchrun, cuda is each rank's own.
        dtype: type of the weights and the computation.
    """
    from owl2.cli.eval import load_engine
    from owl2.eval.inference import Prompts, count_errors, generate_file
    from owl2.eval.report.display import Bar
    from owl2.eval.runner import Batching, RunError
    from owl2.generate.config import GenerationConfig

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    given = {**sampling, "min_new_tokens": min_new_tokens, "repetition_penalty": repetition_penalty}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    is_sampled = settings.keys() & sampling.keys() and settings.get("temperature") != 0
    if is_sampled:
        settings |= {"do_sample": True, "seed": seed}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, num_beams=beams, stop=tuple(stop or ()), **settings
    )
    part, prompts = _shard(shard), Prompts(source, image_root)
    engine = load_engine(checkpoint, device, dtype)
    with Bar([], part) as bar:
        missing = generate_file(
            engine,
            prompts,
            target,
            config,
            batching=Batching(batch_size, batch_tokens),
            shard=part,
            watch=bar,
        )
    if missing:
        print(f"{missing:,} rows are left to other parts; the last one writes {target}", file=sys.stderr)
        return
    errors = count_errors(target)
    num_rows = sum(1 for _ in target.open("rb"))
    if errors:
        print(f"{len(errors):,} of {num_rows:,} rows have no answer; the first: {errors[0]}", file=sys.stderr)
    if len(errors) == num_rows:
        raise RunError(f"{target}: none of {num_rows:,} rows has an answer")
    print(target)


def _shard(typed: str | None) -> "Shard":
    """The part of this process, as typed or as torchrun says."""
    from owl2.cli.eval import own_shard
    from owl2.eval.runner import Shard

    if typed is None:
        return own_shard()
    number, count = read_share(typed)
    return Shard(number - 1, count)

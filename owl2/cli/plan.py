"""`owl2 plan CONFIG ... --gpus N [--tp K]`: memory, traffic and days of stages before a GPU is rented.

Everything behind the options below is a setting of the stage, as `owl2 train` takes it. Exit code 1 and one
sentence that says what would fit, if the stage does not.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from owl2.cli.train import read_config

if TYPE_CHECKING:
    from rich.table import Table

    from owl2.train.config import TrainConfig
    from owl2.train.plan.inputs import Averages
    from owl2.train.plan.plan import Plan


def main(arguments: Sequence[str]) -> None:
    """Plan every stage that is named and print them."""
    from rich.console import Console

    from owl2.checkpoint import CheckpointError
    from owl2.model import ConfigError
    from owl2.train.config import TrainConfigError
    from owl2.train.plan.plan import GPUS, find_model, plan_stage
    from owl2.train.rules import RuleError

    options, overrides = make_parser().parse_known_args(list(arguments))
    console = Console(soft_wrap=True, highlight=False)
    plans = []
    for file in options.configs:
        try:
            words = [*overrides, *([] if options.tp is None else ["--parallel.tensor", str(options.tp)])]
            config = read_config([file, *words])
            if options.gpu not in GPUS:
                raise TrainConfigError(f"--gpu {options.gpu} is not one of {', '.join(GPUS)}")
            model, origin = find_model(config)
            averages = _averages(options, config)
            plan = plan_stage(config, model, options.gpus, GPUS[options.gpu], averages)
        except (CheckpointError, ConfigError, RuleError, TrainConfigError) as error:
            print(f"owl2 plan: {file}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        plans.append(plan)
        console.print(f"[bold]{file}[/] on {options.gpus} x {options.gpu}: {origin}")
        console.print(_changes(config.micro_batch_size, config.accumulation, plan), end="")
        console.print(_assumption(options, plan))
        console.print(_memory(plan))
        console.print(_host_memory(plan))
        console.print(_step(plan, options.mfu))
    days = sum(plan.days(options.mfu) for plan in plans)
    steps = " + ".join(f"{plan.config.steps:,}" for plan in plans)
    console.print(
        f"{steps} steps: {days:,.2f} days, {days * 24 * options.gpus:,.0f} GPU hours "
        f"at an MFU of {options.mfu:g}"
    )


def make_parser() -> argparse.ArgumentParser:
    """The parser of what is not a setting of the stage."""
    parser = argparse.ArgumentParser(
        prog="owl2 plan",
        usage="owl2 plan CONFIG.yaml ... --gpus N [--tp K] [--gpu h100] [--key.path value ...]",
        description="Memory, traffic and days of training stages, before a GPU is there.",
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG.yaml", help="stages, one after the other")
    parser.add_argument("--gpus", type=_count, required=True, help="GPUs in all")
    parser.add_argument("--tp", type=_count, help="parallel.tensor: GPUs that compute one sample together")
    parser.add_argument(
        "--gpu", default="h100", help="h100 (default), b200, h200, a100, a100-40gb, l40s, 4090"
    )
    parser.add_argument(
        "--mfu", type=_share, default=0.4, help="share of the GPUs' peak that is reached: 0.4"
    )
    parser.add_argument(
        "--tokens", type=_positive, help="of a sample on average; default: data.max_tokens, in packs 380"
    )
    parser.add_argument("--images", type=_amount, help="of a sample on average; default: 1")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number of at least 0")
    return value


def _positive(text: str) -> float:
    if not (value := _amount(text)):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def _averages(options: argparse.Namespace, config: TrainConfig) -> Averages:
    from owl2.train.plan.inputs import Averages

    given = {"tokens": options.tokens, "images": options.images}
    known = {name: value for name, value in given.items() if value is not None}
    return replace(Averages.assumed(config), **known)


def _assumption(options: argparse.Namespace, plan: Plan) -> str:
    """What samples hold on average, and where that is from."""
    from owl2.train.plan.inputs import FILL, PACKED_TOKENS

    averages, packed = plan.averages, plan.config.data.pack_tokens is not None
    tokens = "given" if options.tokens is not None else "data.max_tokens"
    if packed and options.tokens is None and averages.tokens == PACKED_TOKENS:
        tokens = "estimated for the mixture of Table 14, set --tokens for another"
    images = "given" if options.images is not None else "assumed"
    return (
        f"a sample on average: {averages.tokens:g} tokens ({tokens}), {averages.images:g} image(s) "
        f"({images})" + f"; packs are taken to be {FILL:.0%} full" * packed
    )


def _changes(micro_batch_size: int, accumulation: int, plan: Plan) -> str:
    from owl2.train.plan.plan import settings

    config = plan.config
    lines = f"train with {settings(plan)}\n"
    if (config.micro_batch_size, config.accumulation) != (micro_batch_size, accumulation):
        ranks = config.parallel.data_ranks(plan.gpus)
        product = micro_batch_size * accumulation * ranks
        lines = (
            f"micro_batch_size {micro_batch_size} x accumulation {accumulation} x {ranks} ranks = {product}, "
            f"but global_batch_size is {config.global_batch_size}, so what fits is planned:\n{lines}"
        )
    return lines


def _memory(plan: Plan) -> Table:
    from owl2.train.plan.plan import gib

    trace = plan.trace
    table = _table(f"memory of a GPU; {plan.num_parameters:,} parameters, {plan.num_trainable:,} learn")
    coded = plan.config.lora is not None and plan.config.lora.base_dtype == "nf4"
    table.add_row("parameters", gib(trace.parameters), "float32" + ", and NF4 beside adapters" * coded)
    table.add_row("gradients", gib(trace.gradients), "float32")
    table.add_row("moments", gib(trace.optimizer), "float32, two of AdamW")
    if plan.config.ema is not None:
        table.add_row("average", gib(trace.average), "float32, of what learns (ema)")
    table.add_row("activations", gib(trace.activations), "kept for the backward pass")
    table.add_row("temporary", gib(trace.temporary), "gathered layers, logits, layers computed again")
    table.add_section()
    share = f"{trace.peak / plan.gpu.usable:.0%} of the {gib(plan.gpu.usable)} that can be used"
    table.add_row("peak", gib(trace.peak), share)
    return table


def _host_memory(plan: Plan) -> str:
    from owl2.train.plan.plan import gib

    saved, node = plan.trace.saved, min(8, plan.gpus)
    kept = "kept from the first save on" if plan.config.save_in_background else "while it is written"
    return (
        f"host memory for a save: {gib(saved)} a GPU, {gib(node * saved)} a node of {node}, {kept}: "
        f"a rank's part of a state"
    )


def _step(plan: Plan, mfu: float) -> Table:
    work, trace, micro_batches = plan.work, plan.trace, plan.micro_batches
    seconds = plan.step_seconds(mfu)
    table = _table(f"a step of {plan.config.global_batch_size:,} samples")
    table.add_row("images", f"{work.images:,.0f}", f"{work.images / seconds:,.0f} a second")
    table.add_row("tokens", f"{work.tokens:,.0f}", f"{work.tokens / seconds:,.0f} a second")
    if plan.config.data.pack_tokens is not None:
        packs = micro_batches * plan.config.parallel.data_ranks(plan.gpus)
        full = work.tokens / (packs * plan.config.data.pack_tokens)
        table.add_row("packs", f"{packs:,}", f"{micro_batches:,} a GPU, {full:.0%} full")
    table.add_row("operations", f"{plan.flops / 1e15:,.1f} PFLOP", f"{seconds:,.2f} s at an MFU of {mfu:g}")
    for name, size, what in (
        ("gathered", micro_batches * trace.gathered, "parameters, received by each GPU"),
        ("reduced", micro_batches * trace.reduced, "gradients"),
        ("copies", trace.copies, "gradients of the copies, once a step"),
        ("tensor", micro_batches * trace.tensor, "sums of tensor parallelism"),
    ):
        if size:
            table.add_row(name, f"{size / 1e9:,.1f} GB", what)
    rate = f"{plan.received / seconds / 1e9:,.1f} GB/s"
    table.add_row("network", rate, "each GPU must receive this to keep the MFU")
    table.add_row("the stage", f"{plan.config.steps:,} steps", f"{plan.days(mfu):,.2f} days")
    return table


def _table(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    return table

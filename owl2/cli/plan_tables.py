"""Tables of `owl2 plan`: what a GPU holds, what a host needs for a save, and what a step costs."""

from collections.abc import Collection

from rich.console import Console
from rich.table import Table

from owl2.train.config import TrainConfig
from owl2.train.plan.inputs import FILL, PACKED_TOKENS
from owl2.train.plan.plan import Plan, gib, settings


def print_plan(console: Console, stage: TrainConfig, plan: Plan, mfu: float, given: Collection[str]) -> None:
    """Print the plan of a stage.

    Args:
        console: where to.
        stage: the stage as it was asked for, before its micro-batches were made to fit.
        plan: what was planned.
        mfu: share of the GPUs' peak that is reached.
        given: which of `tokens` and `images` were given rather than assumed.
    """
    console.print(_changes(stage, plan), end="")
    console.print(_assumption(plan, given))
    console.print(_memory(plan))
    console.print(_host_memory(plan))
    console.print(_step(plan, mfu))


def _assumption(plan: Plan, given: Collection[str]) -> str:
    """The average sample, and where its figures are from."""
    averages, packed = plan.averages, plan.config.data.pack_tokens is not None
    tokens = "given" if "tokens" in given else "data.max_tokens"
    if packed and "tokens" not in given and averages.tokens == PACKED_TOKENS:
        tokens = "estimated for the mixture of Table 14, set --tokens for another"
    images = "given" if "images" in given else "assumed"
    return (
        f"a sample on average: {averages.tokens:g} tokens ({tokens}), {averages.images:g} image(s) "
        f"({images})" + f"; packs are taken to be {FILL:.0%} full" * packed
    )


def _changes(stage: TrainConfig, plan: Plan) -> str:
    """The settings to train with, and why they are not those of the stage."""
    config = plan.config
    lines = f"train with {settings(plan)}\n"
    size, accumulation = stage.micro_batch_size, stage.accumulation
    if (config.micro_batch_size, config.accumulation) != (size, accumulation):
        ranks = config.parallel.data_ranks(plan.gpus)
        lines = (
            f"micro_batch_size {size} x accumulation {accumulation} x {ranks} ranks = "
            f"{size * accumulation * ranks}, but global_batch_size is {config.global_batch_size}, "
            f"so a batch that adds up is planned:\n{lines}"
        )
    return lines


def _memory(plan: Plan) -> Table:
    trace = plan.trace
    table = _table(
        f"memory of a GPU; {plan.num_parameters:,} parameters, {plan.num_trainable:,} of them trainable"
    )
    coded = plan.config.lora is not None and plan.config.lora.base_dtype == "nf4"
    table.add_row("parameters", gib(trace.parameters), "float32" + ", and NF4 where frozen" * coded)
    table.add_row("gradients", gib(trace.gradients), "float32")
    table.add_row("moments", gib(trace.optimizer), "float32, two of AdamW")
    if plan.config.ema is not None:
        table.add_row("average", gib(trace.average), "float32, of trainable parameters (ema)")
    table.add_row("activations", gib(trace.activations), "kept for the backward pass")
    table.add_row("temporary", gib(trace.temporary), "gathered layers, logits, recomputed layers")
    table.add_section()
    share = f"{trace.peak / plan.gpu.usable:.0%} of the {gib(plan.gpu.usable)} that can be used"
    table.add_row("peak", gib(trace.peak), share)
    return table


def _host_memory(plan: Plan) -> str:
    saved, node = plan.trace.saved, min(8, plan.gpus)
    kept = "kept from the first save on" if plan.config.save_in_background else "while it is written"
    return (
        f"host memory for a save: {gib(saved)} a GPU, {gib(node * saved)} a node of {node}, {kept} "
        f"(each rank's part of a state)"
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
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    return table

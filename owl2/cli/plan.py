"""`owl2 plan`: memory, communication and days of training stages before a GPU is rented."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from owl2.cli.settings import Settings, stage_config
from owl2.cli.values import Amount, Count, Range


def plan(
    stages: list[Path],
    *,
    settings: Settings,
    gpus: Count,
    tp: Count | None = None,
    gpu: Literal["b200", "h200", "h100", "a100", "a100-40gb", "l40s", "4090"] = "h100",
    mfu: Annotated[float, Range(0, 1, open=True)] = 0.4,
    tokens: Annotated[float, Range(0, open=True)] | None = None,
    images: Amount | None = None,
    json: bool = False,
) -> None:
    """Estimate memory, communication and days of training stages, before a GPU is there.

    Any key of a stage's YAML file is an option too, as in `owl2 train`. If a stage does not fit, the message
    says what would.

    Args:
        stages: YAML files or names of the stages, one after the other.
        gpus: number of GPUs.
        tp: the same as --parallel.tensor: GPUs that compute one sample together.
        gpu: type of the GPUs.
        mfu: share of the GPUs' peak that is reached.
        tokens: tokens of a sample on average; default: data.max_tokens, in packs 380.
        images: images of a sample on average; default: 1.
        json: print the figures as JSON: bytes, operations, seconds and days of each stage.
    """
    from json import dumps

    from rich.console import Console

    from owl2.cli.plan_tables import print_plan
    from owl2.errors import Owl2Error
    from owl2.train.plan.inputs import Averages
    from owl2.train.plan.plan import GPUS, find_model, plan_stage, with_steps

    if tp is not None:
        settings = Settings([*settings, ("parallel.tensor", str(tp))])
    given = {"tokens": tokens, "images": images}
    known = {name: value for name, value in given.items() if value is not None}
    console = Console(soft_wrap=True, highlight=False, quiet=json)
    plans = []
    for file in stages:
        config = stage_config(file, settings)
        try:
            config = with_steps(config)
            model, origin = find_model(config)
            averages = dataclasses.replace(Averages.assumed(config), **known)
            plans.append(plan_stage(config, model, gpus, GPUS[gpu], averages))
        except Owl2Error as error:
            error.args = (f"{file}: {error}",)
            raise
        console.print(f"[bold]{file}[/] on {gpus} x {gpu}: {origin}")
        print_plan(console, config, plans[-1], mfu, given=known.keys())
    days = sum(plan.days(mfu) for plan in plans)
    steps = " + ".join(f"{plan.config.steps:,}" for plan in plans)
    if json:
        print(
            dumps(
                [{"stage": str(file), **plan.figures(mfu)} for file, plan in zip(stages, plans, strict=True)]
            )
        )
    console.print(f"{steps} steps: {days:,.2f} days, {days * 24 * gpus:,.0f} GPU hours at an MFU of {mfu:g}")

"""The training loop: both stages of the paper, told as a story of one step, on one process or many.

A run is a folder; the same call again continues it. The gradient of an optimizer step is the sum over all
micro-batches of all ranks divided by the number of target tokens of the whole step, so neither accumulation
nor the number of ranks changes it. Micro-batches are read one at a time and let go. A loss or gradient that
is not finite stops every rank before the update, with the samples on disk.
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from owl2.data.loader import Batch, Batches, Draws
from owl2.processor import Processor
from owl2.train import lora
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.facts import Facts
from owl2.train.flops import StepCost, Work, peak_memory
from owl2.train.identity import changes, keep_config
from owl2.train.meters import Meters, Tally
from owl2.train.optim import lr_at, make_optimizer, set_lr
from owl2.train.parallel import (
    Objective,
    drop_blank_gradients,
    finish_gradients,
    set_last_micro_batch,
    with_picture,
)
from owl2.train.prepare import load_stage, make_batches, open_draws, order_of
from owl2.train.ranks import Ranks, local_device, start_ranks, started
from owl2.train.rules import apply_freeze, assign_rules
from owl2.train.shards import save_sharded
from owl2.train.signals import Interrupted, stop_requests
from owl2.train.state import resume, save_state
from owl2.train.trackers import check_installed
from owl2.train.validate import Validation


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite; nothing was updated."""


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run a stage from where it stands to its end and return `run/checkpoint`.

    Under `torchrun` every process calls this; the first one prints and writes for all.

    Raises:
        NotFiniteError: see `bad_step.json` in the run's folder.
        Interrupted: on SIGTERM, SIGINT or SIGUSR1 to any rank, after saving.
        RankError: another rank is gone or hangs; the newest state stands.
        TrainConfigError, RuleError, DataError, CheckpointError: what cannot be trained, used, read or
            written; the newest state stands.
    """
    config.check(started())
    check_installed(config.trackers)
    alone = started() == 1 and config.dtype == "float32"
    device = local_device(config.device)
    with start_ranks(device, config.parallel.tensor, config.parallel.timeout_s, alone=alone) as ranks:
        quiet = Console(file=io.StringIO())
        return _train(config, ranks, (console or Console()) if ranks.is_first else quiet)


@dataclass(frozen=True)
class Run:
    """What a running stage consists of."""

    config: TrainConfig
    ranks: Ranks
    console: Console
    objective: Objective
    cost: StepCost
    processor: Processor
    optimizer: torch.optim.Optimizer
    draws: Draws


def _train(config: TrainConfig, ranks: Ranks, console: Console) -> Path:
    checkpoint = config.run / "checkpoint"
    if checkpoint.exists():
        console.print(f"{config.run}: finished before; {checkpoint} stands")
        return checkpoint
    changes(config.run, config)  # refuses before anything is loaded
    objective, processor = load_stage(config, ranks)
    model = objective.model
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    if config.lora is not None:
        lora.check_rules(assignments)
    apply_freeze(model, assignments)
    optimizer = make_optimizer(model, assignments, config.optim)
    draws = open_draws(config, processor)
    cost = StepCost(model, ranks.size)
    run = Run(config, ranks, console, objective, cost, processor, optimizer, draws)
    start = _begin(run)
    batches = make_batches(config, draws, start, ranks)
    facts = Facts.of(model, config.rules, assignments, config.optim.lr, draws, ranks)
    ranks.on_first(lambda: facts.write(config.run))
    groups, corpora = facts.tables()
    console.print(groups)
    if config.lora is not None:
        console.print(lora.summary(model), highlight=False, soft_wrap=True)
    console.print(corpora)
    _take_steps(run, batches, start)
    if config.lora is not None:
        lora.finish(model, config, ranks)
    save_sharded(model, checkpoint, processor, config.dtype, ranks)
    return checkpoint


def _take_steps(run: Run, batches: Batches, start: int) -> None:
    config, ranks = run.config, run.ranks
    micro_batches = iter(batches)
    validation = Validation(config, run.processor, start, ranks, run.console) if config.validation else None
    with (
        stop_requests(second_kills=ranks.store is None) as stop_requested,
        Meters(config, start, run.console, ranks) as meters,
    ):
        for step in range(start, config.steps):
            meters.update({"step": step + 1, **take_step(run, micro_batches, step)})
            if validation is not None and validation.is_due(step + 1):
                meters.update_validation(validation.measure(run.objective, step + 1))
            stop = ranks.any(stop_requested())
            if stop or (step + 1) % config.save_every == 0:
                _save(run, step + 1)
            if stop:
                raise Interrupted(
                    f"stopped after step {step + 1} of {config.steps}; the same command continues it"
                )


def take_step(run: Run, micro_batches: Iterator[Batch | None], step: int) -> dict[str, float]:
    """Update the parameters once, with step `step` from 0, and return what was measured.

    Raises:
        NotFiniteError: on every rank, before the update.
    """
    model, optim = run.objective.model, run.config.optim
    tally = Tally([source.name for source in run.config.data.sources])
    accumulate(run, micro_batches, tally, step)
    row = tally.total(run.ranks)
    if not row["images"]:
        drop_blank_gradients(model)
    row["grad_norm"] = finish_gradients(model.parameters(), row["targets"], optim.max_grad_norm, run.ranks)
    _stop_if_not_finite(run, step, row, tally.keys)
    row["lr"] = lr_at(step, run.config.steps, optim)
    set_lr(run.optimizer, row["lr"])
    if row["targets"]:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    times = tally.times()
    rates = run.cost.rates(
        Work(row["images"], row["tokens"], row["targets"], row.pop("squares")), times["seconds"]
    )
    memory = {"peak_memory": peak_memory(local_device(run.config.device))}
    return {**row, **times, **rates, **memory}


def accumulate(run: Run, micro_batches: Iterator[Batch | None], tally: Tally, step: int) -> None:
    """Add the gradients of one step's micro-batches up, one after the other."""
    config, ranks, objective = run.config, run.ranks, run.objective
    for number in range(1, config.accumulation + 1):
        ranks.report(f"reading micro-batch {number} of step {step + 1}")
        with tally.waiting():
            batch = next(micro_batches)
        if batch is not None:
            tally.add(batch)
        if ranks.store is not None:
            batch = with_picture(batch, objective.model.config)
        if batch is None:  # no sample of it could be used
            continue
        ranks.report(f"computing micro-batch {number} of step {step + 1}")
        set_last_micro_batch(objective, number == config.accumulation)
        batch = batch.to(local_device(config.device))
        losses = objective(batch)
        if losses.requires_grad:  # text alone reaches no parameter that stage 1 trains
            losses.sum().backward()
        tally.add_losses(batch, losses.detach())


def _save(run: Run, step: int) -> None:
    config = run.config
    run.ranks.report(f"saving after step {step}")
    save_state(
        config.run,
        step,
        run.objective.model,
        run.optimizer,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        order=order_of(config, run.draws),
        ranks=run.ranks,
    )


def _begin(run: Run) -> int:
    """Restore the newest state, or begin the run's folder; return the number of finished steps."""
    config, ranks, console = run.config, run.ranks, run.console
    ranks.on_first(lambda: config.run.mkdir(parents=True, exist_ok=True))
    order = order_of(config, run.draws)
    start = resume(config.run, run.objective.model, run.optimizer, order, ranks, console)
    if start > config.steps:
        raise TrainConfigError(f"steps {config.steps}, but {config.run} has finished {start} already")
    ranks.on_first(lambda: keep_config(config.run, config, start, console))
    if start:
        console.print(f"{config.run}: continuing after step {start} of {config.steps}", soft_wrap=True)
    return start


def _stop_if_not_finite(run: Run, step: int, row: dict[str, float], keys: list[str]) -> None:
    loss, norm = row["loss"], row["grad_norm"]
    if math.isfinite(loss) and math.isfinite(norm):
        return
    path = run.config.run / "bad_step.json"
    # Ranks that computed the same samples name them once; the order is that of the ranks.
    samples = list(dict.fromkeys(key for rank in run.ranks.gather(keys) for key in rank))
    record = {"step": step + 1, "loss": repr(loss), "grad_norm": repr(norm), "samples": samples}
    run.ranks.on_first(lambda: path.write_text(json.dumps(record, indent=1)))
    raise NotFiniteError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}; nothing was updated. The {len(samples)} "
        f"samples are in {path}"
    )

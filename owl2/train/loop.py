"""The training loop: both stages of the paper, told as a story of one step, on one process or many.

A run is a folder; the same call again continues it. The gradient of an optimizer step is the sum over all
micro-batches of all ranks divided by the number of target tokens of the whole step, so neither accumulation
nor the number of ranks changes it. Micro-batches are read one at a time and let go. A loss or gradient that
is not finite stops every rank before the update, or skips it if that is allowed, with the samples on disk.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from owl2.data.loader import Batch, BatchLoader, SampleDataset
from owl2.errors import Owl2Error
from owl2.processor import Processor
from owl2.train.adapters import lora
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.ema import MovingAverage
from owl2.train.flops import StepCost, Work, peak_memory
from owl2.train.metrics import Metrics, Tally, append_row, drop_steps_from
from owl2.train.optim import lr_at, make_optimizer, set_lr
from owl2.train.parallel import (
    Objective,
    drop_blank_gradients,
    finish_gradients,
    set_last_micro_batch,
    with_image,
)
from owl2.train.prepare import load_stage, make_batches, open_dataset, order_of, seen_of
from owl2.train.ranks import Ranks, local_device, start_ranks, started
from owl2.train.rules import apply_freeze, assign_rules
from owl2.train.signals import Interrupted, stop_requests
from owl2.train.state.config_diff import changes, fingerprints, keep_config
from owl2.train.state.saver import Saver
from owl2.train.state.sharded import save_sharded
from owl2.train.state.state import Record, resume, tensors_of
from owl2.train.summary import Summary
from owl2.train.trackers import check_installed
from owl2.train.validate import Validation

BAD_STEPS = "bad_steps.jsonl"
"""In a run's folder: each step that was not finite, with its samples."""


class NotFiniteError(Owl2Error, RuntimeError):
    """The loss or the gradient is NaN or infinite; nothing was updated."""


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run a stage from where it stands to its end and return `run/checkpoint`.

    Under `torchrun` every process calls this; the first one prints and writes for all.

    Raises:
        NotFiniteError: see `bad_steps.jsonl` in the run's folder.
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
    draws: SampleDataset
    record: Record
    """Of step 0: the order of samples and the frozen weights, which stay."""
    average: MovingAverage | None


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
    draws = open_dataset(config, processor)
    cost = StepCost(model, ranks.size)
    record = Record(order=order_of(config, draws), frozen=fingerprints(model, ranks))
    average = MovingAverage(model, config.ema.decay) if config.ema is not None else None
    run = Run(config, ranks, console, objective, cost, processor, optimizer, draws, record, average)
    begun = _begin(run)
    batches = make_batches(config, draws, begun.step, ranks, begun.seen)
    summary = Summary.of(model, assignments, draws, config, ranks)
    ranks.on_first(lambda: summary.write(config.run))
    for table in summary.tables():
        console.print(table)
    if config.lora is not None:
        console.print(lora.summary(model), highlight=False, soft_wrap=True)
    _take_steps(run, batches, begun)
    if average is not None and config.ema is not None and config.ema.checkpoint == "average":
        average.copy_to_model()
    if config.lora is not None:
        lora.finish(model, config, ranks)
    save_sharded(model, checkpoint, processor, config.dtype, ranks)
    return checkpoint


def _take_steps(run: Run, batches: BatchLoader, begun: Record) -> None:
    config, ranks, start, skipped = run.config, run.ranks, begun.step, begun.skipped
    micro_batches = batches.micro_batches()
    validation = Validation(config, run.processor, start, ranks, run.console) if config.validation else None
    with (
        stop_requests(second_kills=ranks.store is None) as stop_requested,
        Metrics(config, start, run.console, ranks) as meters,
        Saver(config, ranks, run.console) as saver,
    ):
        for step in range(start, config.steps):
            saver.check()
            row = take_step(run, micro_batches, step, skips_left=config.skip_nonfinite - skipped)
            skipped += int(row.get("skipped", 0))
            meters.update({"step": step + 1, **row})
            if validation is not None and validation.is_due(step + 1):
                meters.update_validation(validation.measure(run.objective, step + 1))
            stop = ranks.any(stop_requested())
            if stop or (step + 1) % config.save_every == 0:
                seen = seen_of(batches, ranks)
                record = replace(run.record, step=step + 1, skipped=skipped, seen=seen)
                also = run.average.state if run.average is not None else None
                saver.save(record, tensors_of(run.objective.model, run.optimizer, also))
            if stop:
                saver.wait()
                raise Interrupted(
                    f"stopped after step {step + 1} of {config.steps}; the same command continues it"
                )


def take_step(
    run: Run, micro_batches: Iterator[tuple[Batch | None, bool]], step: int, skips_left: int = 0
) -> dict[str, float]:
    """Update the parameters once, with step `step` from 0, and return what was measured.

    A step that is not finite changes nothing; it has `skipped` in what is returned.

    Raises:
        NotFiniteError: on every rank, before the update, if none may be skipped any more.
    """
    model, optim = run.objective.model, run.config.optim
    tally = Tally([source.name for source in run.config.data.sources])
    accumulate(run, micro_batches, tally, step)
    row = tally.total(run.ranks)
    if not row["images"]:
        drop_blank_gradients(model)
    row["grad_norm"] = finish_gradients(model.parameters(), row["targets"], optim.max_grad_norm, run.ranks)
    is_finite = math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])
    if not is_finite:
        _record_bad_step(run, step, row, tally.keys, skips_left)
        row["skipped"] = 1
    row["lr"] = lr_at(step, run.config.steps, optim)
    set_lr(run.optimizer, row["lr"])
    if row["targets"] and is_finite:
        run.optimizer.step()
        if run.average is not None:
            run.average.update()
    run.optimizer.zero_grad(set_to_none=True)
    times = tally.times()
    rates = run.cost.rates(
        Work(row["images"], row["tokens"], row["targets"], row.pop("squares")), times["seconds"]
    )
    memory = {"peak_memory": peak_memory(local_device(run.config.device))}
    return {**row, **times, **rates, **memory}


def accumulate(run: Run, micro_batches: Iterator[tuple[Batch | None, bool]], tally: Tally, step: int) -> None:
    """Add the gradients of one step's micro-batches up, one after the other."""
    config, ranks, objective = run.config, run.ranks, run.objective
    number, is_last = 0, False
    while not is_last:  # packed steps have as many micro-batches as they need, the same on every rank
        number += 1
        ranks.report(f"reading micro-batch {number} of step {step + 1}")
        with tally.waiting():
            batch, is_last = next(micro_batches)
        if batch is not None:
            tally.add(batch)
        if ranks.store is not None:
            batch = with_image(batch, objective.model.config)
        if batch is None:  # no sample of it could be used
            continue
        ranks.report(f"computing micro-batch {number} of step {step + 1}")
        set_last_micro_batch(objective, is_last)
        batch = batch.to(local_device(config.device))
        losses = objective(batch)
        if losses.requires_grad:  # text alone reaches no parameter that stage 1 trains
            losses.sum().backward()
        tally.add_losses(batch, losses.detach())


def _begin(run: Run) -> Record:
    """Restore the newest state, or begin the run's folder; return the record of what is finished."""
    config, ranks, console = run.config, run.ranks, run.console
    ranks.on_first(lambda: config.run.mkdir(parents=True, exist_ok=True))
    also = run.average.state if run.average is not None else None
    begun = resume(config.run, run.objective.model, run.optimizer, run.record, ranks, console, also)
    start = begun.step
    if start > config.steps:
        raise TrainConfigError(f"steps {config.steps}, but {config.run} has finished {start} already")
    ranks.on_first(lambda: keep_config(config.run, config, start, console))
    ranks.on_first(lambda: drop_steps_from(config.run / BAD_STEPS, start))
    if start:
        console.print(f"{config.run}: continuing after step {start} of {config.steps}", soft_wrap=True)
    return begun


def _record_bad_step(run: Run, step: int, row: dict[str, float], keys: list[str], skips_left: int) -> None:
    """Write down the samples of a step that is not finite, and stop if it may not be skipped."""
    path, allowed = run.config.run / BAD_STEPS, run.config.skip_nonfinite
    # Ranks that computed the same samples name them once; the order is that of the ranks.
    samples = list(dict.fromkeys(key for rank in run.ranks.gather(keys) for key in rank))
    record = {"step": step + 1, "loss": repr(row["loss"]), "grad_norm": repr(row["grad_norm"])}
    run.ranks.on_first(lambda: append_row(path, {**record, "samples": samples}))
    said = (
        f"step {step + 1}: loss {row['loss']}, gradient norm {row['grad_norm']}; nothing was updated. The "
        f"{len(samples)} samples are in {path}"
    )
    if skips_left < 1:
        hint = f"after {allowed} steps that were skipped" if allowed else "skip_nonfinite would allow some"
        raise NotFiniteError(f"{said} ({hint})")
    run.console.print(f"[bold red]{said}[/]; skipped {allowed - skips_left + 1} of {allowed}", soft_wrap=True)

"""The training loop of both stages of the paper, on one process or many; `take_step` is the algorithm.

A run is a folder; the same call again continues it. The gradient of an optimizer step is the sum over all
micro-batches of all ranks divided by the number of target tokens of the whole step, so neither accumulation
nor the number of ranks changes it. Micro-batches are read one at a time and freed after use. If a loss or
gradient is not finite, every rank stops before the update or, if the configuration allows it, skips the step.
"""

import io
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from owl2.data.dataset import SampleDataset
from owl2.data.loader import Batch, BatchLoader
from owl2.errors import Owl2Error
from owl2.processor import Processor
from owl2.provenance import Record, card, recorded
from owl2.train.adapters import lora
from owl2.train.config import TrainConfig, TrainConfigError, config_to_dict
from owl2.train.ema import MovingAverage
from owl2.train.fingerprints import frozen_fingerprints, model_fingerprint
from owl2.train.flops import StepCost, Work, peak_memory
from owl2.train.lock import open_run_folder
from owl2.train.metrics import Metrics, Tally, append_row, drop_steps_from
from owl2.train.optim import lr_at, make_optimizer, set_lr
from owl2.train.parallel import (
    Objective,
    drop_blank_gradients,
    finish_gradients,
    set_last_micro_batch,
    with_image,
)
from owl2.train.prepare import (
    check_machine,
    load_stage,
    make_loader,
    on_this_machine,
    open_dataset,
    order_of,
    seen_of,
    steps_from_epochs,
)
from owl2.train.profiling import profiled
from owl2.train.ranks import Ranks, local_device, start_ranks, started
from owl2.train.rules import Assignment, apply_freeze, assign_rules
from owl2.train.signals import Interrupted, stop_requests
from owl2.train.state.config_diff import changes, flat, is_finished, keep_config
from owl2.train.state.saver import Saver
from owl2.train.state.sharded import save_sharded
from owl2.train.state.state import StateRecord, resume, tensors_of
from owl2.train.summary import Summary
from owl2.train.unusable import Unusable
from owl2.train.validate import Validation

BAD_STEPS = "bad_steps.jsonl"
"""In a run's folder: each step that was not finite, with its samples."""


class NotFiniteError(Owl2Error, RuntimeError):
    """The loss or the gradient is NaN or infinite; nothing was updated."""


def train(config: TrainConfig, console: Console | None = None, profile: int = 0) -> Path:
    """Run a stage from its newest state to its end and return `run/checkpoint`.

    Under `torchrun` every process calls this; the first one prints and writes for all. `profile` steps of it
    are traced (profiling.py).

    Raises:
        NotFiniteError: see `bad_steps.jsonl` in the run's folder.
        Interrupted: on SIGTERM, SIGINT or SIGUSR1 to any rank, after saving.
        RankError: another rank is gone or hangs.
        TrainConfigError: settings that are impossible, or not those of the run that they continue.
        Owl2Error: anything else that cannot be read, used or written. Earlier states are always kept.
    """
    config.check(started())
    config = on_this_machine(config)
    check_machine(config)
    alone = started() == 1 and config.dtype == "float32"
    device = local_device(config.device)
    with (
        start_ranks(device, config.parallel.tensor, config.parallel.timeout_s, alone=alone) as ranks,
        ExitStack() as stack,
    ):
        console = (console or Console()) if ranks.is_first else Console(file=io.StringIO())
        ranks.on_first(lambda: stack.enter_context(open_run_folder(config.run, console)))
        changed = changes(config.run, config)  # refuses before anything is loaded
        if is_finished(config.run, changed):
            result = config.run / "checkpoint"
            console.print(f"{config.run}: finished before; the result is {result}", soft_wrap=True)
            return result
        records: list[Record] = []
        facts = {"config": config_to_dict(config)}
        ranks.on_first(lambda: records.append(stack.enter_context(recorded(config.run, facts))))
        if records and changed:
            records[0].attempt["changed"] = dict(changed)
        return _train(config, ranks, console, records[0] if records else None, profile * ranks.is_first)


@dataclass(frozen=True)
class Run:
    """The parts of a running stage."""

    config: TrainConfig
    ranks: Ranks
    console: Console
    objective: Objective
    cost: StepCost
    processor: Processor
    optimizer: torch.optim.Optimizer
    dataset: SampleDataset
    record: StateRecord
    """Of step 0: the order of samples and the frozen weights, which do not change."""
    average: MovingAverage | None


def _train(config: TrainConfig, ranks: Ranks, console: Console, record: Record | None, profile: int) -> Path:
    run, assignments = prepare(config, ranks, console)
    config, model, start = run.config, run.objective.model, run.record
    marks = {"model": model_fingerprint(model, start.frozen, ranks), "data": start.order["content"]}
    resumed = _resume(run)
    if record is not None:
        seeds = {key: value for key, value in flat(record.content["config"]) if key.endswith("seed")}
        facts = {"processes": ranks.size, "device": config.device, "first_step": resumed.step}
        record.update({"seeds": seeds, "fingerprints": marks}, **facts)
    loader = make_loader(config, run.dataset, resumed.step, ranks, resumed.seen)
    summary = Summary.of(model, assignments, run.dataset, config, ranks)
    ranks.on_first(lambda: summary.write(config.run))
    for table in summary.tables():
        console.print(table)
    console.print(summary.line(config), highlight=False, soft_wrap=True)
    if config.lora is not None:
        console.print(lora.summary(model), highlight=False, soft_wrap=True)
    _take_steps(run, loader, resumed, profile)
    if run.average is not None and config.ema is not None and config.ema.checkpoint == "average":
        run.average.copy_to_model()
    if config.lora is not None:
        lora.finish(model, config, ranks)
    notes = card(record.content) if record is not None else ""
    checkpoint = config.run / "checkpoint"
    save_sharded(model, checkpoint, run.processor, config.dtype, ranks, notes)
    return checkpoint


def prepare(config: TrainConfig, ranks: Ranks, console: Console) -> tuple[Run, list[Assignment]]:
    """Load and open all that a stage needs, as at its first step; called by every rank."""
    objective, processor = load_stage(config, ranks)
    model = objective.model
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    if config.lora is not None:
        lora.check_rules(assignments)
    apply_freeze(model, assignments)
    dataset = open_dataset(config, processor)
    config = steps_from_epochs(config, dataset.mixture)
    run = Run(
        config=config,
        ranks=ranks,
        console=console,
        objective=objective,
        cost=StepCost(model, ranks.size),
        processor=processor,
        optimizer=make_optimizer(model, assignments, config.optim),
        dataset=dataset,
        record=StateRecord(order=order_of(config, dataset), frozen=frozen_fingerprints(model, ranks)),
        average=MovingAverage(model, config.ema.decay) if config.ema is not None else None,
    )
    return run, assignments


def _take_steps(run: Run, loader: BatchLoader, resumed: StateRecord, profile: int) -> None:
    """Train from the step of the resumed state to the last."""
    config, ranks, start, skipped = run.config, run.ranks, resumed.step, resumed.skipped
    micro_batches = loader.micro_batches()
    unusable = Unusable(loader, config.run, ranks, run.console)
    validation = Validation(config, run.processor, start, ranks, run.console) if config.validation else None
    with (
        stop_requests(second_kills=ranks.store is None) as stop_requested,
        Metrics(config, start, run.console, ranks) as metrics,
        Saver(config, ranks, run.console) as saver,
        profiled(config.run, profile, local_device(config.device), run.console) as step_is_over,
    ):
        if validation is not None and validation.questions and not start:
            metrics.update_validation(validation.measure(run.objective, 0), validation.answers)
        for step in range(start, config.steps):
            saver.check()
            row = take_step(run, micro_batches, step, skips_left=config.skip_nonfinite - skipped)
            skipped += int(row.get("skipped", 0))
            row |= unusable.update()
            step_is_over()
            metrics.update({"step": step + 1, **row})
            if validation is not None and validation.is_due(step + 1):
                metrics.update_validation(validation.measure(run.objective, step + 1), validation.answers)
            stop = ranks.any(stop_requested())
            if stop or (step + 1) % config.save_every == 0:
                record = replace(run.record, step=step + 1, skipped=skipped, seen=seen_of(loader, ranks))
                extra = run.average.state if run.average is not None else None
                saver.save(record, tensors_of(run.objective.model, run.optimizer, extra))
            if stop:
                saver.wait()
                raise Interrupted(
                    f"stopped after step {step + 1} of {config.steps}; the same command continues it"
                )
    seen = seen_of(loader, ranks)
    if bad := sum(sum(each.bad.values()) for each in seen):
        drawn = sum(each.drawn for each in seen)
        run.console.print(
            f"{bad:,} of {drawn:,} samples could not be used, see {config.run}/bad_samples.jsonl",
            soft_wrap=True,
        )


def take_step(
    run: Run, micro_batches: Iterator[tuple[Batch | None, bool]], step: int, skips_left: int = 0
) -> dict[str, float]:
    """Update the parameters once, with step `step` from 0, and return the metrics.

    A step that is not finite changes nothing; its metrics have `skipped`.

    Raises:
        NotFiniteError: on every rank, before the update, if no skips are left.
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
    work = Work(row["images"], row["tokens"], row["targets"], row.pop("squares"))
    memory = {"peak_memory": peak_memory(local_device(run.config.device))}
    return {**row, **times, **run.cost.rates(work, times["seconds"]), **memory}


def accumulate(run: Run, micro_batches: Iterator[tuple[Batch | None, bool]], tally: Tally, step: int) -> None:
    """Add up the gradients of one step's micro-batches."""
    config, ranks, objective = run.config, run.ranks, run.objective
    number, is_last = 0, False
    while not is_last:  # the number varies if samples are packed, and is the same on every rank
        number += 1
        ranks.report(f"reading micro-batch {number} of step {step + 1}")
        with tally.waiting():
            batch, is_last = next(micro_batches)
        if batch is not None:
            tally.add(batch)
        if ranks.store is not None:
            batch = with_image(batch, objective.model.config)
        if batch is None:  # none of its samples can be used
            continue
        ranks.report(f"computing micro-batch {number} of step {step + 1}")
        set_last_micro_batch(objective, is_last)
        batch = batch.to(local_device(config.device))
        losses = objective(batch)
        if losses.requires_grad:  # not so if text alone reaches no trainable parameter, as in stage 1
            losses.sum().backward()
        tally.add_losses(batch, losses.detach())


def _resume(run: Run) -> StateRecord:
    """Restore the newest state, or start the run's folder; return the record of the finished steps."""
    config, ranks, console = run.config, run.ranks, run.console
    record = resume(
        config.run,
        run.objective.model,
        run.optimizer,
        run.record,
        ranks=ranks,
        console=console,
        extra=run.average.state if run.average is not None else None,
        accept_edits=config.data.accept_edits,
    )
    start = record.step
    if start > config.steps:
        raise TrainConfigError(
            f"steps {config.steps}, but {config.run} has finished {start} already; raise steps to train on"
        )
    ranks.on_first(lambda: _set_result_aside(config.run, console))
    ranks.on_first(lambda: keep_config(config.run, config.as_given(), start, console))
    ranks.on_first(lambda: drop_steps_from(config.run / BAD_STEPS, start))
    if start:
        console.print(f"{config.run}: continuing after step {start} of {config.steps}", soft_wrap=True)
    return record


def _set_result_aside(run: Path, console: Console) -> None:
    """Rename the checkpoint of a finished run whose steps were raised."""
    if not (checkpoint := run / "checkpoint").exists():
        return
    number = 1
    while (aside := run / f"checkpoint-before-{number}").exists():
        number += 1
    checkpoint.rename(aside)
    console.print(f"{run}: steps were raised; the result so far is kept as {aside}", soft_wrap=True)


def _record_bad_step(run: Run, step: int, row: dict[str, float], keys: list[str], skips_left: int) -> None:
    """Record the samples of a step that is not finite, and stop if it must not be skipped."""
    path, allowed = run.config.run / BAD_STEPS, run.config.skip_nonfinite
    # Tensor ranks that computed the same samples name them once; the order is that of the ranks.
    samples = list(dict.fromkeys(key for rank in run.ranks.gather(keys) for key in rank))
    record = {"step": step + 1, "loss": repr(row["loss"]), "grad_norm": repr(row["grad_norm"])}
    run.ranks.on_first(lambda: append_row(path, {**record, "samples": samples}))
    message = (
        f"step {step + 1}: loss {row['loss']}, gradient norm {row['grad_norm']}; nothing was updated. The "
        f"{len(samples)} samples are in {path}"
    )
    if skips_left < 1:
        hint = f"after {allowed} skipped steps" if allowed else "skip_nonfinite would allow some"
        raise NotFiniteError(f"{message} ({hint})")
    skipped = f"skipped {allowed - skips_left + 1} of {allowed}"
    run.console.print(f"[bold red]{message}[/]; {skipped}", soft_wrap=True)

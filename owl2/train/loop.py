"""The training loop: both stages of the paper, told as a story of one step.

A run is a folder; the same call again continues it. The loss of an optimizer step is the sum over all its
micro-batches divided by the number of target tokens of the whole step, so accumulation changes nothing.
A loss or gradient that is not finite stops the run before the update, with the samples on disk.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from owl2.checkpoint import load_model, save_checkpoint
from owl2.data.loader import Batch, Batches, Draws
from owl2.data.order import Mixture, StepSampler
from owl2.data.sources import open_source
from owl2.model import Owl2Model
from owl2.processor import Processor
from owl2.train.config import TrainConfig, TrainConfigError, config_to_dict
from owl2.train.meters import Meters, rules_table, sources_table
from owl2.train.objectives import OBJECTIVES
from owl2.train.optim import lr_at, make_optimizer, set_lr
from owl2.train.rules import apply_freeze, assign_rules
from owl2.train.state import load_state, save_state, saved_states


class NotFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite; nothing was updated."""


class Interrupted(SystemExit):
    """The run was asked to stop; its state is saved and the same command continues it."""


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Run a stage from where it stands to its end and return `run/checkpoint`.

    Raises:
        NotFiniteError: see `bad_step.json` in the run's folder.
        Interrupted: on SIGTERM or SIGINT, after saving.
        TrainConfigError, RuleError, DataError, CheckpointError: what cannot be trained, used, read or
            written; the newest state stands.
    """
    console = console or Console()
    config.check()
    checkpoint = config.run / "checkpoint"
    if checkpoint.exists():
        console.print(f"{config.run}: finished before; {checkpoint} stands")
        return checkpoint
    model, processor = load_stage(config)
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    apply_freeze(model, assignments)
    optimizer = make_optimizer(model, assignments, config.optim)
    start = _resume(config, model, optimizer, console)
    trainable = [p for p in model.parameters() if p.requires_grad]
    data = make_batches(config, processor, start)
    console.print(rules_table(model, config.rules, assignments, config.optim.lr))
    console.print(sources_table(data.draws.sources, data.draws.mixture.quotas))
    batches = iter(data)
    objective = OBJECTIVES[config.objective]
    with (
        stop_requests() as stop_requested,
        Meters(config.run, config.run.name, start, config.steps, config.log_every, console) as meters,
    ):
        for step in range(start, config.steps):
            began = time.perf_counter()
            micro_batches = [batch for batch in islice(batches, config.accumulation) if batch is not None]
            num_targets = sum(batch.targets.count for batch in micro_batches)
            waited = time.perf_counter() - began
            loss = 0.0
            for batch in micro_batches:
                batch = batch.to(config.device)
                micro_loss = objective(model, batch) / num_targets
                if micro_loss.requires_grad:  # text alone reaches no parameter that stage 1 trains
                    micro_loss.backward()
                loss += micro_loss.item()
            norm = torch.nn.utils.clip_grad_norm_(trainable, config.optim.max_grad_norm).item()
            _stop_if_not_finite(config.run, step, loss, norm, micro_batches)
            lr = lr_at(step, config.steps, config.optim)
            set_lr(optimizer, lr)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row = {"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm, **_counts(micro_batches)}
            meters.update({**row, "seconds": time.perf_counter() - began, "data_wait": waited})
            if stop_requested() or (step + 1) % config.save_every == 0:
                save_state(config.run, step + 1, model, optimizer, config.keep_last)
            if stop_requested():
                raise Interrupted(
                    f"stopped after step {step + 1} of {config.steps}; the same command continues it"
                )
    save_checkpoint(model, checkpoint, processor=processor)
    return checkpoint


def load_stage(config: TrainConfig) -> tuple[Owl2Model, Processor]:
    """Load the starting checkpoint and make it the stage's: resolution, visual ways, context."""
    model = load_model(config.model, device=config.device, dtype=config.dtype, progress=False)
    if config.copy_text_to_vision:
        model.copy_text_to_vision()
    if config.image_size is not None:
        model.set_image_size(config.image_size)
    processor = Processor.from_folder(config.model, model.config)
    return model, processor.replace(
        image_size=model.config.vision.image_size, max_tokens=model.config.decoder.max_position_embeddings
    )


def make_batches(config: TrainConfig, processor: Processor, start_step: int) -> Batches:
    """Open the corpora and return the micro-batches from `start_step` on."""
    data = config.data
    if processor.max_tokens is not None and data.max_tokens > processor.max_tokens:
        raise TrainConfigError(
            f"data.max_tokens {data.max_tokens} exceeds the decoder's context, {processor.max_tokens} tokens"
        )
    sources = [open_source(s.name, s.path, s.image_root) for s in data.sources]
    mixture = Mixture([len(s) for s in sources], [s.weight for s in data.sources], data.seed)
    processor = processor.replace(template=data.template)  # no limit: the loader cuts to data.max_tokens
    draws = Draws(sources, [s.augment for s in data.sources], mixture, processor, data.max_tokens)
    sampler = StepSampler(
        micro_batch_size=config.micro_batch_size,
        accumulation=config.accumulation,
        ranks=1,
        rank=0,
        start_step=start_step,
        steps=config.steps,
    )
    return Batches(
        draws,
        sampler,
        num_workers=data.num_workers,
        bad_samples=config.run / "bad_samples.jsonl",
        max_bad_fraction=data.max_bad_fraction,
    )


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or SIGINT into a question the loop asks between steps; a second one kills."""
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {n: signal.signal(n, remember) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _resume(config: TrainConfig, model: Owl2Model, optimizer: torch.optim.Optimizer, console: Console) -> int:
    """Restore the newest state, or begin the run's folder; return the number of finished steps."""
    config.run.mkdir(parents=True, exist_ok=True)
    states = saved_states(config.run)
    start = load_state(states[-1], model, optimizer) if states else 0
    if start > config.steps:
        raise TrainConfigError(f"steps {config.steps}, but {config.run} has finished {start} already")
    (config.run / "config.yaml").write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    if states:
        console.print(f"{config.run}: continuing after step {start} of {config.steps}")
    return start


def _stop_if_not_finite(run: Path, step: int, loss: float, norm: float, batches: list[Batch]) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    record = {"step": step + 1, "loss": repr(loss), "grad_norm": repr(norm)}
    samples = [key for batch in batches for key in batch.keys]
    (run / "bad_step.json").write_text(json.dumps({**record, "samples": samples}, indent=1))
    raise NotFiniteError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}; nothing was updated. The {len(samples)} "
        f"samples are in {run / 'bad_step.json'}"
    )


def _counts(batches: list[Batch]) -> dict[str, int]:
    return {
        "tokens": sum(batch.layout.num_tokens for batch in batches),
        "targets": sum(batch.targets.count for batch in batches),
        "images": sum(len(batch.pixel_values) for batch in batches),
    }

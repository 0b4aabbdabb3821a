"""`owl2 train --dry_run`: everything that can be known about a stage before its first step.

Each check is the run's own (prepare.py, rules.py, the planner), on a model without storage and on a few
samples of each source. What cannot be checked because something before it is wrong is left out.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from rich.console import Console

from owl2.checkpoint import resolve
from owl2.checkpoint.folder import fit, read_config, skeleton
from owl2.checkpoint.tensors import TensorFolder, dtype_of
from owl2.data.dataset import SampleDataset, check_video
from owl2.data.inspect.inspection import EachOnce, Inspection, inspect_dataset
from owl2.data.inspect.page import facts, reasons
from owl2.data.loader import MIN_BAD_SAMPLES, check_lost
from owl2.data.readers.base import Source
from owl2.data.sample import DataError
from owl2.errors import Faults, Owl2Error, sentence
from owl2.model import Owl2Config, Owl2Model
from owl2.pages.page import render, write_page
from owl2.processor import Processor
from owl2.train.config import SourceConfig, TrainConfig, config_to_dict
from owl2.train.flops import PEAK_TFLOPS
from owl2.train.lock import open_run_folder
from owl2.train.plan.inputs import Averages
from owl2.train.plan.plan import GPUS, DoesNotFit, Gpu, find_model, gib, plan_exactly, plan_stage
from owl2.train.plan.tracer import without_storage
from owl2.train.prepare import (
    check_context,
    check_held_out,
    check_machine,
    make_dataset,
    mix,
    on_this_machine,
    open_part,
    order_of,
    steps_from_epochs,
)
from owl2.train.ranks import Ranks, local_device, started
from owl2.train.rules import assign_rules
from owl2.train.state.config_diff import changes, is_finished
from owl2.train.state.state import check_order, saved_states
from owl2.train.summary import Summary

NUM_OPENED = 32
"""Random samples of each source that are prepared; the run's rule for unusable ones needs more than ten."""
NUM_SHOWN = 4
PAGE = "dry_run.html"
"""In the run's folder."""


class DryRunError(Owl2Error, ValueError):
    """The stage cannot run; the message lists all that is wrong."""


@dataclass
class Stage:
    """What of a stage could be prepared."""

    config: TrainConfig
    faults: Faults
    model_config: Owl2Config | None = None
    model: Owl2Model | None = None
    """Without storage; parameters are frozen as the rules say."""
    processor: Processor | None = None
    sources: list[Source] = field(default_factory=list)
    found: list[Inspection] = field(default_factory=list)
    dataset: SampleDataset | None = None
    """The mixture, if nothing is wrong."""

    @property
    def can_prepare(self) -> bool:
        """Whether samples can be prepared: a processor, and no fault in how the data is tokenised."""
        wrong = {key for key in self.faults.keys if key.startswith("data.")}
        return self.processor is not None and all(key.startswith("data.sources") for key in wrong)


def dry_run(config: TrainConfig, faults: Faults, console: Console) -> None:
    """Check a stage, print what it consists of, and write `RUN/dry_run.html` with samples of its sources.

    Args:
        config: may have None where `faults` has the reason.
        faults: errors of the configuration.
        console: for the summary.

    Raises:
        DryRunError: everything that is wrong.
    """
    is_whole = not faults.errors
    with faults.collect_new():
        config = on_this_machine(config)
    stage = Stage(config, faults)
    with faults.collect():
        check_machine(config)
    with faults.collect("run"):
        _check_run(config, is_whole)
    with faults.collect("model"):
        _open_model(stage)
    with faults.collect("rules"):
        _apply_rules(stage)
    if stage.can_prepare:
        with faults.collect():
            check_context(config.data, stage.processor)  # type: ignore[arg-type]
    for source, held_out in _sources(config):
        with faults.collect():
            _inspect(stage, source, held_out)
    with faults.collect_new():
        _mix(stage)
    memory = _memory(stage)
    page = None
    if stage.found and "run" not in faults.keys:
        with faults.collect():
            page = _write_page(stage)
    if faults.errors:
        shown = "" if page is None else f"\nSamples of the sources that could be read: {page}"
        raise DryRunError(f"{faults.numbered()}{shown}")
    _print(stage, memory, page, console)


def _check_run(config: TrainConfig, is_whole: bool) -> None:
    """Folder, owner and, if the configuration is whole, that which the run began with."""
    if config.run is None:
        return
    folder, faults = _existing(config.run), Faults()
    with faults.collect(), open_run_folder(config.run):
        pass
    for parent in config.run.absolute().parents:  # leave nothing behind
        if folder in parent.parents and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    with faults.collect():
        is_finished(config.run, changes(config.run, config) if is_whole else {})
    faults.raise_all()


def _open_model(stage: Stage) -> None:
    """Configuration, tokenizer, and the names and shapes in the weights, whose values are not read."""
    folder = stage.config.model
    if folder is None:
        return
    folder = resolve(folder)
    read_config(folder)  # a folder, in contrast to `find_model`
    fit(skeleton(folder, torch.float32), TensorFolder(folder))
    stage.model_config, _ = find_model(replace(stage.config, model=folder))
    processor = Processor.from_folder(folder, stage.model_config)
    stage.processor = processor.replace(image_size=stage.model_config.vision.image_size)


def _apply_rules(stage: Stage) -> None:
    if stage.model_config is not None and stage.config.rules:
        stage.model = without_storage(stage.config, stage.model_config)


def _sources(config: TrainConfig) -> Iterator[tuple[SourceConfig, float | None]]:
    """Those of the mixture with the share that is held out, then the held-out ones."""
    held_out = config.validation.sources if config.validation is not None else []
    if config.data is not None:
        yield from ((source, config.data.validation_share) for source in config.data.sources or [])
    yield from ((replace(source, augment="none"), None) for source in held_out or [])


def _inspect(stage: Stage, config: SourceConfig, held_out: float | None) -> None:
    """Open a source and prepare some of its samples.

    Raises:
        DataError: it cannot be read, or so few samples can be used that the run would stop.
    """
    if config.name is None or config.path is None:
        return
    source = open_part(config, stage.config.data.seed, held_out)
    check_video(source)
    stage.sources.append(source)
    data = stage.config.data
    check_lost([source], data.max_bad_fraction)
    if not stage.can_prepare:
        return
    order = EachOnce(len(source), data.seed)
    dataset = make_dataset(data, [config], [source], order, stage.processor)  # type: ignore[arg-type]
    found = inspect_dataset(dataset, NUM_OPENED, NUM_SHOWN)
    stage.found.append(found)
    found.check()
    if len(found.bad) > max(MIN_BAD_SAMPLES, data.max_bad_fraction * found.num_opened):
        first = found.bad[0]
        raise DataError(
            f"{source.name}: {len(found.bad)} of {found.num_opened} random samples cannot be used, so the "
            f"run would stop (data.max_bad_fraction {data.max_bad_fraction:g}); the first, {first['key']}: "
            f"{first['reason']}"
        )


def _mix(stage: Stage) -> None:
    """The mixture, what is held out of it, and its length."""
    data = stage.config.data
    if stage.faults.errors or stage.processor is None:
        return
    sources = stage.sources[: len(data.sources)]
    check_held_out(data, sources)
    mixture = mix(data.sources, sources, data.seed)
    stage.dataset = make_dataset(data, data.sources, sources, mixture, stage.processor)
    stage.config = steps_from_epochs(stage.config, mixture)
    if states := saved_states(stage.config.run):
        check_order(states[-1], order_of(stage.config, stage.dataset), data.accept_edits)


def _memory(stage: Stage) -> list[str]:
    """Lines on memory and disk; what does not fit is added to the faults."""
    config = replace(stage.config, epochs=None)  # its steps are known by now
    model, faults = stage.model_config, stage.faults
    if faults.errors or model is None or stage.model is None:
        return ["memory: not planned before the errors are put right"]
    ranks, averages, lines = started(), Averages.assumed(config), []
    device = local_device(config.device)
    try:
        if device.startswith("cuda"):
            gpu = _gpu(device)
            peak = plan_stage(config, model, ranks, gpu, averages).trace.peak
            lines.append(f"memory: {gib(peak)} of {gib(gpu.usable)} on each of {ranks} x {gpu.name}")
        else:
            plan = plan_exactly(replace(config, device="cpu"), model, ranks, GPUS["h100"], averages)
            have, here = _main_memory(), min(ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
            needed = here * plan.trace.peak
            lines.append(
                f"memory: {gib(needed)} for model and samples of {here} process(es); {gib(have)} there"
            )
            if needed > have:
                raise DoesNotFit(f"{lines.pop()}; owl2 plan tells what needs less")
    except DoesNotFit as error:
        faults.add(error)
    except Exception as error:
        if (said := sentence(error)) is None:
            raise
        lines.append(f"memory: not planned: {said}")
    with faults.collect():
        lines.append(_disk(config, stage.model))
    return lines


def _gpu(device: str) -> Gpu:
    """The GPU that is there."""
    found = torch.cuda.get_device_properties(device)
    peak = next((peak for part, peak in PEAK_TFLOPS.items() if part in found.name), 1)
    return Gpu(found.name, found.total_memory, 1e12 * peak)


def _main_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk(config: TrainConfig, model: Owl2Model) -> str:
    """Room for the states that are kept, one that is being written, and the result."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = trainable * 4 * (3 if config.ema is None else 4)
    result = sum(p.numel() for p in model.parameters()) * dtype_of(config.dtype).itemsize
    needed = (config.keep_last + 1) * state + result
    free = shutil.disk_usage(_existing(config.run)).free
    line = f"disk: {gib(needed)} for {config.keep_last} + 1 states and the checkpoint; {gib(free)} free"
    if state + result > free:
        raise DryRunError(f"{line}; free some, or set keep_last lower or `run` to another disk")
    return line


def _existing(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _write_page(stage: Stage) -> Path:
    config = stage.config
    config.run.mkdir(parents=True, exist_ok=True)
    path = config.run / PAGE
    html = render(
        "stage.html",
        title=f"{config.run.absolute().name}: before the first step",
        sources=[
            (found, facts(found), [(f"{count:,}", kind, first) for count, kind, first in reasons(found)])
            for found in stage.found
        ],
        config=yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True),
    )
    write_page(path, html)
    return path


def _print(stage: Stage, memory: list[str], page: Path | None, console: Console) -> None:
    config, model = stage.config, stage.model
    assert model is not None
    assert stage.dataset is not None
    assignments = assign_rules(model, config.rules, config.optim.weight_decay)
    for table in Summary.of(model, assignments, stage.dataset, config, Ranks(size=started())).tables():
        console.print(table)
    bad = [f"{len(found.bad)} of {found.num_opened} of {found.name}" for found in stage.found if found.bad]
    lines = [
        f"{config.steps:,} steps of {config.global_batch_size:,} samples on {started()} process(es)",
        *memory,
        *([f"samples that cannot be used: {', '.join(bad)}"] if bad else []),
        *([f"samples as the model sees them: {page}"] if page is not None else []),
        "no errors; nothing was trained",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)

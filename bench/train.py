"""A training step, ours against the released formulation of the same model: time and peak memory.

    python -m bench.train [--width 1024] [--layers 8] [--labelled 32] [--rounds 5] [--out train.json]

Both take whole steps (forward, backward, clipping, AdamW) on the same weights and samples. The released
formulation is written from its description (docs/fidelity.md): embeddings are merged row by row, every norm
and key-value projection finds, gathers and scatters its rows (bench/mam.py), attention is eager, and the loss
takes a shifted copy of the logits of all tokens. Images are encoded the same way in both, by a vision encoder
too small to matter.

Time is process CPU time on one thread, alternating within each round, as in bench/mam.py. Memory is measured
in separate processes, because a peak never falls: weights, gradients and moments are made first; `step` is
then the further rise of the peak of resident memory during two steps of accumulation and update. In these
processes glibc returns freed blocks to the system at once: by default it keeps hundreds of MB that no tensor
uses any more, and more of them for ours than for the released formulation. If losses or gradients differ, the
comparison is an error.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import jsonargparse
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from bench.mam import START, TOKENS, VISUAL, Released
from owl2.data.loader import Batch
from owl2.files import write_file
from owl2.model import Owl2Config, Owl2Model, build, packed_layout, preset, targets_of
from owl2.model.decoder import rotary_tables
from owl2.model.layout import IGNORE
from owl2.train.flops import peak_memory
from owl2.train.objectives import next_token

PARTS = ("forward", "backward", "update", "step")
MAX_NORM = 1.0
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
"""Read by glibc at process start: larger blocks are taken from the system and returned one by one."""
TOLERANCE = 1e-5
"""Largest difference of losses and, relative to the largest one, of gradients."""

Loss = Callable[[Owl2Model, Batch], Tensor]
Figures = dict[str, float]


def make_config(width: int, layers: int, vocab: int) -> Owl2Config:
    """A decoder of the released proportions behind the vision encoder of the tiny preset."""
    tiny = preset("tiny")
    heads = width // 64
    decoder = dataclasses.replace(
        tiny.decoder,
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
    )
    abstractor = dataclasses.replace(tiny.abstractor, num_learnable_queries=VISUAL - 1)
    return tiny.replace(decoder=decoder, abstractor=abstractor)


def make_batch(config: Owl2Config, rows: int, labelled: int) -> Batch:
    """Rows of 256 tokens: text, an image, more text whose last `labelled` tokens are to be predicted."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.decoder.vocab_size, (rows, TOKENS), generator=generator)
    ids[:, START : START + VISUAL] = config.image_token_id
    labels = torch.full_like(ids, IGNORE)
    labels[:, -labelled:] = ids[:, -labelled:]
    layout = packed_layout(ids.flatten(), (TOKENS,) * rows, config.image_token_id)
    size = config.vision.image_size
    return Batch(
        input_ids=ids.flatten(),
        layout=layout,
        targets=targets_of(labels, layout),
        pixel_values=torch.randn(rows, config.vision.num_channels, size, size, generator=generator),
        keys=tuple(f"random:{row}" for row in range(rows)),
        num_samples=rows,
    )


def our_loss(model: Owl2Model, batch: Batch) -> Tensor:
    """The training loss, as a mean over the targets."""
    return next_token(model, batch).sum() / batch.targets.count


def released_loss(model: Owl2Model, batch: Batch) -> Tensor:
    """The same value, computed as in the released code."""
    config, backbone = model.config, model.model
    ids = batch.input_ids.unflatten(0, (-1, TOKENS))
    labels = torch.full_like(batch.input_ids, IGNORE)
    labels[batch.targets.rows + 1] = batch.targets.ids
    modality = ids.eq(config.image_token_id).long()
    x = merge(model, ids, model.encode_images(batch.pixel_values))
    mask = torch.full((TOKENS, TOKENS), torch.finfo(x.dtype).min).triu(1).expand(len(ids), 1, -1, -1)
    rotary = rotary_tables(config.decoder, torch.arange(TOKENS), x.dtype)
    for layer in backbone.layers:
        x = Released(layer, modality)(x, rotary, mask, None)
    logits = F.linear(backbone.norm(x), model.head_weight)  # B T V
    shifted = logits[:, :-1].contiguous().flatten(0, 1)
    return F.cross_entropy(shifted, labels.view_as(ids)[:, 1:].flatten(), ignore_index=IGNORE)


def merge(model: Owl2Model, ids: Tensor, visual_tokens: Tensor) -> Tensor:
    """Embed (B, T) -> (B, T, D) row by row: text, image, text."""
    rows = []
    for row, image in zip(ids, visual_tokens, strict=True):
        places = torch.where(row == model.config.image_token_id)[0]
        before, after = row[: places[0]], row[places[-1] + 1 :]
        embed = model.model.embed_tokens
        rows.append(torch.cat((embed(before), image, embed(after))))
    return torch.stack(rows)


FORMULATIONS: dict[str, Loss] = {"ours": our_loss, "released": released_loss}


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, the samples of its step, and an optimizer whose moments exist."""

    model: Owl2Model
    batch: Batch
    optimizer: torch.optim.Optimizer

    @classmethod
    def make(cls, width: int, layers: int, rows: int, labelled: int, vocab: int) -> "Bench":
        config = make_config(width, layers, vocab)
        model = build(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # with zero gradients, to create the moments
        return cls(model, make_batch(config, rows, labelled), optimizer)

    def step(self, formulation: str) -> dict[str, float]:
        """Take one step; return its loss and CPU seconds of each part."""
        marks = [time.process_time()]
        loss = FORMULATIONS[formulation](self.model, self.batch)
        marks.append(time.process_time())
        loss.backward()
        marks.append(time.process_time())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        marks.append(time.process_time())
        forward, backward, update = (b - a for a, b in itertools.pairwise(marks))
        parts = {"forward": forward, "backward": backward, "update": update}
        return {"loss": loss.item(), **parts, "step": marks[-1] - marks[0]}

    def gradients(self, formulation: str) -> tuple[float, dict[str, Tensor]]:
        """The loss and a copy of its gradients."""
        loss = FORMULATIONS[formulation](self.model, self.batch)
        loss.backward()
        found = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad(set_to_none=False)
        return loss.item(), found


def check_equal(bench: Bench) -> None:
    """Raise AssertionError if losses or gradients differ: times and memory would mean nothing."""
    (ours, our_gradients), (released, gradients) = (bench.gradients(name) for name in FORMULATIONS)
    if not math.isclose(ours, released, rel_tol=TOLERANCE):
        raise AssertionError(f"losses differ: ours {ours}, released {released}")
    bound = TOLERANCE * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, expected in gradients.items():
        torch.testing.assert_close(our_gradients[name], expected, rtol=1e-3, atol=bound, msg=name)


def measure_time(bench: Bench, rounds: int) -> dict[str, Figures]:
    """Median CPU seconds of whole steps, taken in turn, and the median ratio of a round's step to ours."""
    taken: dict[str, list[Figures]] = {name: [] for name in FORMULATIONS}
    for turn in range(rounds):
        for name in list(FORMULATIONS)[:: 1 if turn % 2 else -1]:
            taken[name].append(bench.step(name))
    figures = {}
    for name, steps in taken.items():
        ratios = [step["step"] / ours["step"] for step, ours in zip(steps, taken["ours"], strict=True)]
        medians = {part: statistics.median(step[part] for step in steps) for part in PARTS}
        figures[name] = {**medians, "ratio": statistics.median(ratios)}
    return figures


def measure_memory(
    formulation: str, width: int, layers: int, rows: int, labelled: int, vocab: int
) -> tuple[Figures, list[float]]:
    """Take two steps in this new process and return memory in bytes, and the losses.

    `rest` is counted: weights, gradients and two moments. `step` is the rise of the peak above the process
    that holds them, `peak` above the process without a model.
    """
    torch.set_num_threads(1)
    start = peak_memory("cpu")
    bench = Bench.make(width, layers, rows, labelled, vocab)
    before = peak_memory("cpu")
    losses = [bench.step(formulation)["loss"] for _ in range(2)]
    after = peak_memory("cpu")
    rest = 4 * sum(parameter.nbytes for parameter in bench.model.parameters())
    return {"rest": rest, "step": after - before, "peak": after - start}, losses


def memory_of_each(*shape: int) -> dict[str, Figures]:
    """Measure each formulation in its own process.

    Raises:
        AssertionError: their losses differ, before or after an update.
    """
    figures, losses = {}, {}
    for name in FORMULATIONS:
        spawn = multiprocessing.get_context("spawn")
        with patch.dict(os.environ, FREED_AT_ONCE), ProcessPoolExecutor(1, spawn) as process:
            figures[name], losses[name] = process.submit(measure_memory, name, *shape).result()
    if not all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(*losses.values(), strict=True)):
        raise AssertionError(f"losses differ: {losses}")
    return figures


def show(seconds: dict[str, Figures], memory: dict[str, Figures], title: str) -> None:
    """Print one table; its last row has the ratios of the two formulations."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in (*(f"{part} s" for part in PARTS), "rest MB", "step MB", "peak MB"):
        table.add_column(column, justify="right")
    for name in FORMULATIONS:
        times = [f"{seconds[name][part]:.2f}" for part in PARTS]
        table.add_row(name, *times, *(f"{value / 1e6:,.0f}" for value in memory[name].values()))
    times = [f"{seconds['released'][part] / seconds['ours'][part]:.2f} x" for part in PARTS[:-1]]
    # The peak of a very small model may be 0.
    pairs = [(memory["ours"][name], memory["released"][name]) for name in ("rest", "step", "peak")]
    shares = [f"{ours / released:.2f}" if released else "-" for ours, released in pairs]
    table.add_row("faster, share", *times, f"{seconds['released']['ratio']:.2f} x", *shares)
    Console(width=110).print(table)


def main(
    width: int = 1024,
    layers: int = 8,
    rows: int = 4,
    labelled: int = 32,
    vocab: int = 32000,
    rounds: int = 5,
    out: Path | None = None,
) -> None:
    """Measure a training step in both formulations.

    Args:
        width: hidden size of the decoder; heads of 64.
        layers: of the decoder.
        rows: samples of 256 tokens, 65 of them visual.
        labelled: target tokens at the end of each row. Answers of a word or two, as in VQAv2, are fewer than
            32 of 256 tokens, descriptions more.
        vocab: size of the vocabulary.
        rounds: number of alternations.
        out: JSON file for the results.
    """
    torch.set_num_threads(1)
    shape = (width, layers, rows, labelled, vocab)
    memory = memory_of_each(*shape)
    bench = Bench.make(*shape)
    check_equal(bench)
    seconds = measure_time(bench, rounds)
    batch = f"{rows} x {TOKENS} tokens, {VISUAL} visual and {labelled} labelled a row"
    show(seconds, memory, f"{layers} layers of width {width}, {batch}, float32, 1 thread, CPU")
    if out is not None:
        settings = {"width": width, "layers": layers, "rows": rows, "labelled": labelled, "vocab": vocab}
        versions = {"torch": torch.__version__, "machine": platform.machine()}
        record = {**settings, "rounds": rounds, **versions, "seconds": seconds, "memory": memory}
        write_file(out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)

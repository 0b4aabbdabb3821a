"""Cost of MAM: one decoder layer with it, without it, and as the released code computes it.

    python -m bench.mam [--width 1024] [--rounds 15] [--out mam.json]

A busy machine makes wall time useless, so every figure is process CPU time on one thread; variants take
turns within each round and are compared within it. `ratio` is the median over rounds of time / time of the
plain decoder. The released formulation is re-created here from its description (docs/fidelity.md): each norm
and each projection searches for its rows, gathers, computes and scatters; attention is eager with a dense
mask, and the cache is concatenated for every token.

Shapes: B rows, T tokens a row, N = B T, H heads, E head dimension, D width.
"""

import dataclasses
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from owl2.files import write_file
from owl2.model.attention import Rotary, SharedInputs
from owl2.model.cache import KVCache
from owl2.model.config import DecoderConfig, MamConfig
from owl2.model.decoder import DecoderLayer, rotary_tables
from owl2.model.layout import Layout, decode_layout, packed_layout
from owl2.model.mam import RMSNorm

IMAGE = -200
TOKENS, VISUAL, START = 256, 65, 20
"""Tokens a row, how many of them are visual, and where these begin."""
MIN_SAMPLE_S = 0.05
"""A measurement repeats its work for at least this long; CPU time has a resolution of some microseconds."""
PLAIN = MamConfig(norm=False, key=False, value=False)

Run = Callable[[], object]


class Released(nn.Module):
    """A layer's weights, used as the released code does."""

    def __init__(self, layer: DecoderLayer, modality: Tensor):
        super().__init__()
        self.layer = layer
        self.modality = modality
        """(B, T): 0 text, 1 visual."""

    def multiway(self, branches: Iterable[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        """Find the rows of each modality, gather, apply its branch, scatter."""
        out = torch.empty_like(x)
        for kind, branch in enumerate(branches):
            rows = self.modality.eq(kind).nonzero(as_tuple=True)
            picked = x[rows].unsqueeze(1).contiguous()
            if picked.numel():
                out[rows] = branch(picked).squeeze(1)
        return out.contiguous()

    def norm(self, branches: Iterable[RMSNorm], x: Tensor) -> Tensor:
        def apply(branch: RMSNorm, y: Tensor) -> Tensor:
            variance = y.float().pow(2).mean(-1, keepdim=True)
            return branch.weight * (y.float() * torch.rsqrt(variance + branch.eps)).to(y.dtype)

        return self.multiway([partial(apply, branch) for branch in branches], x)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, D) -> (B, T, D). `mask` (T, past + T) is added to the scores."""
        layer: Any = self.layer
        attention = layer.self_attn
        y = self.norm(layer.input_layernorm.multiway, x)
        q = attention.q_proj(y)
        k, v = (self.multiway(p.multiway, y) for p in (attention.k_proj, attention.v_proj))
        q, k, v = (t.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for t in (q, k, v))  # B H T E
        cos, sin = (table.transpose(0, 1) for table in rotary)  # 1 T E
        q, k = (t * cos + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * sin for t in (q, k))
        if past is not None:
            k, v = (torch.cat((old, new), dim=2) for old, new in zip(past, (k, v), strict=True))
        scores = q @ k.transpose(2, 3) / math.sqrt(attention.head_dim) + mask
        attended = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
        x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
        return x + layer.mlp(self.norm(layer.post_attention_layernorm.multiway, x))


@dataclasses.dataclass(frozen=True)
class Bench:
    """The two layers under test (equal text weights) and the batch they run on."""

    plain: DecoderLayer
    mam: DecoderLayer
    config: DecoderConfig
    batch: int

    @classmethod
    def make(cls, width: int, batch: int) -> "Bench":
        heads = width // 64
        config = DecoderConfig(
            hidden_size=width,
            intermediate_size=int(width * 2.6875) // 32 * 32,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=64,
        )
        torch.manual_seed(0)
        plain, mam = DecoderLayer(config, PLAIN), DecoderLayer(config, MamConfig())
        weights = mam.state_dict()
        plain.load_state_dict(
            {n.replace(".multiway.0", ""): w for n, w in weights.items() if ".multiway.1" not in n}
        )
        return cls(plain, mam, config, batch)

    def inputs(self, rows_with_image: int) -> tuple[Tensor, Layout, Tensor]:
        """Embeddings (N, D), their layout and the released modality indicator (B, T)."""
        modality = torch.zeros(self.batch, TOKENS, dtype=torch.long)
        modality[:rows_with_image, START : START + VISUAL] = 1
        ids = torch.where(modality.bool(), IMAGE, 5).flatten()
        x = torch.randn(len(ids), self.config.hidden_size)
        return x, packed_layout(ids, [TOKENS] * self.batch, IMAGE), modality

    def forward_runs(self, rows_with_image: int, *, backward: bool) -> dict[str, Run]:
        """Return a call for each variant, after comparing their outputs."""
        x, layout, modality = self.inputs(rows_with_image)
        rotary = rotary_tables(self.config, layout.positions, x.dtype)
        row = rotary[0][:TOKENS], rotary[1][:TOKENS]
        mask = torch.full((TOKENS, TOKENS), torch.finfo(x.dtype).min).triu(1)
        shared = SharedInputs(layout, rotary)
        static = SharedInputs(dataclasses.replace(layout, is_static=True), rotary)
        released = Released(self.mam, modality)
        square = x.unflatten(0, (self.batch, TOKENS))
        forwards: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: self.plain(x, shared),
            "split": lambda: self.mam(x, shared),
            "static": lambda: self.mam(x, static),
            "released": lambda: released(square, row, mask, None).flatten(0, 1),
        }
        check_equal({name: run for name, run in forwards.items() if name != "plain"})
        if not backward:
            return {name: torch.no_grad()(run) for name, run in forwards.items()}
        x.requires_grad_()
        square.requires_grad_()
        return {name: partial(backward_of, run) for name, run in forwards.items()}

    def decode_runs(self) -> dict[str, Run]:
        """One new text token after `TOKENS` cached ones, a single row."""
        x = torch.randn(1, self.config.hidden_size)
        layout = decode_layout([TOKENS], x.device)
        rotary = rotary_tables(self.config, layout.positions, x.dtype)
        cache = KVCache(dataclasses.replace(self.config, num_hidden_layers=1), 1, 512, x.device, x.dtype)
        for buffer in (cache.keys[0], cache.values[0]):
            buffer[:, :TOKENS].normal_()
        shared = SharedInputs(layout, rotary, cache)
        released = Released(self.mam, torch.zeros(1, 1, dtype=torch.long))
        past = tuple(t[0][:, :TOKENS].transpose(1, 2).contiguous() for t in (cache.keys, cache.values))
        mask = torch.zeros(1, TOKENS + 1)
        runs: dict[str, Callable[[], Tensor]] = {
            "plain": lambda: self.plain(x, shared),
            "split": lambda: self.mam(x, shared),
            "released": lambda: released(x[None], rotary, mask, past)[0],
        }
        check_equal({name: run for name, run in runs.items() if name != "plain"})
        return {name: torch.no_grad()(run) for name, run in runs.items()}


def backward_of(forward: Callable[[], Tensor]) -> None:
    forward().sum().backward()


@torch.no_grad()
def check_equal(runs: dict[str, Callable[[], Tensor]]) -> None:
    """Raise AssertionError unless all variants compute the same; else their times could not be compared."""
    (first, *others) = (run() for run in runs.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)


def measure(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Time all variants in turn; CPU milliseconds per call, and ratios to `plain`."""
    repeats = {}
    for name, run in runs.items():
        run()
        repeats[name] = max(1, math.ceil(MIN_SAMPLE_S / cpu_seconds(run, 1)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        order = list(runs) if turn % 2 else list(runs)[::-1]
        for name in order:
            times[name].append(cpu_seconds(runs[name], repeats[name]))
    return {
        name: {
            "median_ms": 1e3 * statistics.median(values),
            "best_ms": 1e3 * min(values),
            "ratio": statistics.median(a / b for a, b in zip(values, times["plain"], strict=True)),
            "ratio_of_best": min(values) / min(times["plain"]),
        }
        for name, values in times.items()
    }


def cpu_seconds(run: Run, repeats: int) -> float:
    begin = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - begin) / repeats


def show(results: dict[str, dict[str, dict[str, float]]], title: str) -> None:
    table = Table(title=title)
    for heading in ("work", "variant"):
        table.add_column(heading)
    for heading in ("median ms", "best ms", "ratio", "ratio of best"):
        table.add_column(heading, justify="right")
    for work, variants in results.items():
        for name, value in variants.items():
            figures = (f"{value['median_ms']:.3f}", f"{value['best_ms']:.3f}")
            table.add_row(work, name, *figures, f"{value['ratio']:.2f}", f"{value['ratio_of_best']:.2f}")
        table.add_section()
    Console().print(table)


def main(width: int = 1024, batch: int = 4, rounds: int = 15, out: Path | None = None) -> None:
    """Measure one decoder layer: prefill, forward and backward, and decode.

    Args:
        width: hidden size; heads of 64.
        batch: rows of 256 tokens, 65 of them visual.
        rounds: number of times that the variants take turns.
        out: JSON file for the figures.
    """
    torch.set_num_threads(1)
    bench = Bench.make(width, batch)
    works = {
        "prefill": bench.forward_runs(batch, backward=False),
        "prefill, half of the rows text-only": bench.forward_runs(batch // 2, backward=False),
        "prefill, text only": bench.forward_runs(0, backward=False),
        "forward + backward": bench.forward_runs(batch, backward=True),
        "decode, one token": bench.decode_runs(),
    }
    results = {work: measure(runs, rounds) for work, runs in works.items()}
    title = (
        f"one layer, width {width}, {batch} x {TOKENS} tokens, {VISUAL} visual a row, float32, 1 thread, CPU"
    )
    show(results, title)
    if out is not None:
        settings = {"width": width, "batch": batch, "rounds": rounds, "torch": torch.__version__}
        record = {**settings, "machine": platform.machine(), "results": results}
        write_file(out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)

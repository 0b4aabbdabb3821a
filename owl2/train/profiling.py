"""`owl2 train --profile N`: where the time and the memory of N steps go.

The steps after the first few are traced with `torch.profiler`: `RUN/profile` gets a trace for
chrome://tracing or Perfetto, the operations that took longest, and on a GPU a snapshot of the allocator for
https://pytorch.org/memory_viz. The steps compute the same as without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, schedule

from owl2.files import write_file

SKIPPED = 3
"""Steps before the trace: kernels are chosen, memory is found; one more warms the profiler up."""
ROWS = 40


@contextmanager
def profiled(run: Path, steps: int, device: str, console: Console) -> Iterator[Callable[[], None]]:
    """Trace `steps` steps; the function returned is called after each.

    Args:
        run: its folder.
        steps: 0 traces nothing.
        device: of the model.
        console: is told where the files are.
    """
    if not steps:
        yield lambda: None
        return
    is_cuda, folder, done = device.startswith("cuda"), run / "profile", False
    folder.mkdir(exist_ok=True)

    def write(profiler: profile) -> None:
        nonlocal done
        done = True
        key = "self_device_time_total" if is_cuda else "self_cpu_time_total"
        table = profiler.key_averages(group_by_input_shape=True).table(sort_by=key, row_limit=ROWS)
        write_file(folder / "operations.txt", table.encode())
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))
        if is_cuda:
            torch.cuda.memory._dump_snapshot(str(folder / "memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        console.print(f"profile of {steps} steps: {folder}: {names}", soft_wrap=True, highlight=False)

    if is_cuda:
        torch.cuda.memory._record_memory_history(max_entries=200_000)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    plan = schedule(skip_first=SKIPPED, wait=0, warmup=1, active=steps, repeat=1)
    with profile(
        activities=activities,
        schedule=plan,
        on_trace_ready=write,
        record_shapes=True,
        profile_memory=True,
        acc_events=True,
    ) as profiler:
        yield profiler.step
    if not done:
        console.print(
            f"--profile {steps} traced nothing: it begins after {SKIPPED + 1} steps", soft_wrap=True
        )

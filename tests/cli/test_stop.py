"""A run that a scheduler stops while it starts ends with 75, whenever that is, so that it is queued again."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from owl2.train.signals import Interrupted, stop_at_start
from tests.cli.test_commands import ROOT

START = [sys.executable, "-m", "owl2", "train", "stage.yaml", "--steps", "100000", "--run", "new"]


@contextmanager
def started(words: list[str], cwd: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A run that hears SIGTERM; Python itself takes some milliseconds until it can."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with subprocess.Popen(words, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True) as run:
        try:
            while True:
                caught = re.search(r"SigCgt:\t(\w+)", Path(f"/proc/{run.pid}/status").read_text())
                if caught is not None and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                    break
                assert run.poll() is None
            yield run
        finally:
            run.kill()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "wait_s", [0.0, 0.3, 1.0, *(pytest.param(wait_s, marks=pytest.mark.slow) for wait_s in (0.03, 2.0, 4.0))]
)
def test_a_signal_at_any_moment_of_the_start_ends_with_75(
    desk: Path, number: signal.Signals, wait_s: float
) -> None:
    with started(START, desk) as run:
        time.sleep(wait_s)
        run.send_signal(number)
        assert run.wait(60) == 75, run.communicate()[1]
    assert not (desk / "new/.lock").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_rank_that_waits_for_others_that_never_come_ends_with_75(desk: Path) -> None:
    code = "import sys; from owl2.train import signals; signals.GRACE_S = 1\n"
    code += "import torch.distributed as dist; meet = dist.rendezvous\n"
    code += "def wait(*a, **k): print('waits', file=sys.stderr, flush=True); return meet(*a, **k)\n"
    code += "dist.rendezvous = wait; from owl2.__main__ import main; main(sys.argv[1:])"
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    words = [sys.executable, "-c", code, *START[3:], "--micro_batch_size", "1"]
    with started(words, desk, **ranks) as run:
        assert run.stderr is not None
        assert "waits" in run.stderr.readline()
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 75
        assert "the same command continues it" in run.stderr.read()


def test_an_error_that_follows_from_the_request_is_no_defect() -> None:
    """An import that is interrupted may be caught by a library, which then lacks half of its names."""

    def start(is_asked: bool) -> None:
        with stop_at_start():
            if is_asked:
                with suppress(BaseException):
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(1)
            raise AttributeError("module 'numpy' has no attribute 'may_share_memory'")

    with pytest.raises(Interrupted):
        start(is_asked=True)
    with pytest.raises(AttributeError):
        start(is_asked=False)

"""`owl2 demo [--preset tiny|small|smoke] [--out DIR]`: the whole paper on a laptop."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from owl2.cli.arguments import run_function
from owl2.cli.train import EXIT_STOPPED


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 demo`."""
    run_function(demo, arguments, command="demo")


def demo(preset: Literal["tiny", "small", "smoke"] = "tiny", out: Path = Path("runs/demo")) -> None:
    """Build, train and examine a small mPLUG-Owl2; the same command continues an interrupted run.

    Args:
        preset: tiny takes half an hour on two cores; small starts from a pretrained language model and
            takes hours; smoke takes minutes (and learns nothing).
        out: folder of the run; report.html, results.json and checkpoint are what remains.
    """
    from owl2.demo.run import run_demo
    from owl2.errors import Owl2Error
    from owl2.train.loop import Interrupted

    try:
        run_demo(preset, out)
    except Interrupted as stop:
        print(f"owl2 demo: {stop}", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None
    except Owl2Error as error:
        print(f"owl2 demo: {error}", file=sys.stderr)
        raise SystemExit(1) from None

"""`owl2 demo`: the whole paper on a laptop."""

from pathlib import Path
from typing import Literal


def demo(*, preset: Literal["tiny", "small", "smoke"] = "tiny", out: Path = Path("runs/demo")) -> None:
    """Build, train and evaluate a small mPLUG-Owl2; the same command continues an interrupted run.

    Args:
        preset: tiny takes 20 minutes on two cores; small starts from a pretrained language model and
            takes hours; smoke takes minutes, to try the commands (it learns nothing).
        out: folder of the run; its report.html, results.json and checkpoint are the result.
    """
    from owl2.demo.run import run_demo

    run_demo(preset, out)

"""`owl2 config`: the stages that come with the package, and the files that start them on a cluster.

`owl2 config show pretrain > mine.yaml` is the start of a stage of one's own.
"""

import re
import sys
from pathlib import Path

from owl2.cli.settings import SHIPPED, shipped_stages
from owl2.cli.values import UsageError, nearest


def _files() -> dict[str, Path]:
    """Stages by name, files for a cluster by `launch/FILE`."""
    launch = sorted(path for path in (SHIPPED / "launch").iterdir() if path.is_file())
    return {**shipped_stages(), **{f"launch/{path.name}": path for path in launch}}


def show(name: str) -> None:
    """Print a stage or a file for a cluster, with its comments, as the start of your own.

    Args:
        name: as `owl2 config list` has it.
    """
    files = _files()
    if name not in files:
        near = nearest(name, list(files))
        raise UsageError(f"no configuration {name!r}; the nearest is {near!r} of {', '.join(files)}")
    sys.stdout.write(files[name].read_text(encoding="utf-8"))


def list_all() -> None:
    """List the stages that come with owl2, each with its first sentence."""
    files = _files()
    width = max(map(len, files))
    for name, path in files.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        head = " ".join(line[2:] for line in lines[:6] if line.startswith("# "))
        print(f"{name:{width}}  {re.split('[.:] ', head)[0]}")


COMMANDS = {"list": list_all, "show": show}

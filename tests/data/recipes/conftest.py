"""Official files in miniature, once for all tests; what is made of them, once too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl2.data.recipes.convert import convert
from owl2.data.recipes.recipe import find_recipes
from tests.data.recipes.official import write_official, write_web

Rows = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_official(tmp_path_factory.mktemp("official"))
    return write_web(root)


@pytest.fixture(scope="session")
def converted(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    for recipe in find_recipes("pretrain,instruct"):
        convert(recipe, official, out)
    return out


@pytest.fixture(scope="session")
def rows(converted: Path) -> Rows:
    """Name of a corpus -> its rows."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (converted / f"{name}.jsonl").read_text("utf-8").splitlines()]

    return read

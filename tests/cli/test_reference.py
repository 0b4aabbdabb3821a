"""Help and the reference page explain every key, option and environment variable."""

import re
import subprocess
import sys
import time
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from bench.reference import ENVIRONMENT, page
from owl2.__main__ import main
from owl2.cli.settings import keys_of
from owl2.generate.config import GenerationConfig
from owl2.train.config import TrainConfig

ROOT = Path(__file__).parents[2]


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / "docs/reference.md").read_text() == page(), "python -m bench.reference > docs/reference.md"


@pytest.mark.parametrize("config", [TrainConfig, GenerationConfig])
def test_every_key_is_explained_and_the_page_has_it(config: type) -> None:
    text, todo, done = page(), [config], set()
    for kind in todo:
        for key in keys_of(kind):
            assert key.doc, f"{kind.__name__}.{key.name} has no docstring"
            assert f"| `{key.name}` |" in text
            if isinstance(key.item, type) and is_dataclass(key.item) and key.item not in done:
                done.add(key.item)
                todo.append(key.item)


def test_every_environment_variable_that_is_read_is_on_the_page() -> None:
    read = {"OPENAI_API_KEY"}  # by its constant
    for path in (ROOT / "owl2").rglob("*.py"):
        text = path.read_text()
        read |= set(re.findall(r"environ(?:\.get\(|\[)\s*[\x22\x27](\w+)", text))
        read |= set(re.findall(r"_from_environment\(\"(\w+)\"", text))
    assert read == set(ENVIRONMENT)


def test_help_shows_type_default_and_bounds_of_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "--data.max_tokens N Longest sample, visual tokens included; longer ones are cut (default: 2048;",
        "--optim.betas [X, X] Decay of the averages of the gradient and of its square (default: [0.9, 0.98];",
        "--optim.lr X Highest learning rate, which rules multiply (default: 0.0001; above 0)",
        "--ema.decay X",
        "(required; above 0 and below 1)",
        "75 stopped on request",
    ):
        assert text in shown, text


@pytest.mark.parametrize(
    ("asked", "there", "absent"),
    [
        ("data", ["--data.seed", "image_root", "The mixture"], ["--optim.lr", "--steps"]),
        ("optim.lr", ["--optim.lr X", "(default: 0.0001; above 0)"], ["--optim.min_lr", "--data.seed"]),
        ("rules", ["layer_decay"], ["--optim.lr", "image_root"]),
        ("steps", ["--steps N"], ["--data.seed"]),
    ],
)
def test_help_shows_one_section_or_one_key(
    asked: str, there: list[str], absent: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["train", "--help", asked], ["train", "-h", asked], ["plan", "--help", asked]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        shown = " ".join(capsys.readouterr().out.split())
        assert all(text in shown for text in there)
        assert not any(text in shown for text in absent)


def test_help_of_a_section_that_is_not_there_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--help", "optin"])
    assert "no section or key 'optin'; the nearest is 'optim'" in capsys.readouterr().err


def test_help_of_a_section_needs_no_torch_and_comes_at_once() -> None:
    code = "import sys; from owl2.__main__ import main\ntry: main(['train', '--help', 'data'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - begun < 2

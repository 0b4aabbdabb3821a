"""What the documentation says is true of the program: commands, code, settings, files and links.

Every command of a `console` or `bash` block goes through the real parser up to the point where work would
begin; cheap ones are run. Code is compiled and its names looked up; settings are those of the configuration.
"""

import ast
import dataclasses
import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

from owl2.__main__ import COMMANDS, main
from owl2.cli.parser import Parser
from owl2.cli.settings import stage_config
from owl2.demo.assets import ASSETS
from owl2.demo.presets import PRESETS
from owl2.train.config import (
    DataConfig,
    EmaConfig,
    LoraConfig,
    ParallelConfig,
    SourceConfig,
    TrainConfig,
    ValidationConfig,
)
from owl2.train.rules import Rule

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OUTSIDE = {"docker", "export", "kubectl", "pip", "python", "sbatch", "sky"}
"""Programs that are not ours; what they are told is checked as far as it is ours."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str

    @property
    def name(self) -> str:
        return self.page.name


def blocks(*languages: str) -> list[Block]:
    found = ((page, match) for page in PAGES for match in FENCE.finditer(page.read_text(encoding="utf-8")))
    return [Block(page, match[1], match[2]) for page, match in found if match[1] in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words) of every command; in a `console` block the lines behind a `$`."""
    for block in blocks("console", "bash"):
        for line in block.text.splitlines():
            if block.language == "bash" or line.startswith("$ "):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                yield block.name, list(itertools.takewhile(lambda word: word not in ("<", ">", "|"), words))


COMMAND_LINES = [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in commands() if words]


class Parsed(Exception):
    """The parser accepted a command; nothing has been done yet."""


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_a_command_of_the_documentation_is_one_that_the_program_takes(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path(words[0]).name
    if program == "owl2":
        check_owl2(words[1:], monkeypatch)
    elif program == "make":
        check_make(words[1:])
    elif program == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        assert (launch.module, launch.training_script) == (True, "owl2")
        check_owl2(launch.training_script_args, monkeypatch)
    else:
        assert program in OUTSIDE, f"nobody checks what {program} is told"
        for name in re.findall(r"\.?\[(\w+)\]", " ".join(words)) if program == "pip" else []:
            assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text(), f"no extra {name!r}"
        if words[1] == "-m":
            assert importlib.util.find_spec(words[2]), f"no module {words[2]}"


def check_owl2(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[0].startswith("-"):
        main(arguments)
        return
    parse = Parser.parse

    def parse_only(parser: Parser, words: list[str]) -> None:
        values = parse(parser, words)
        if arguments[0] in ("train", "plan"):
            for stage in values.get("stages", [values.get("stage")]):
                stage_config(stage, values["settings"])
        raise Parsed

    monkeypatch.setattr(Parser, "parse", parse_only)
    monkeypatch.chdir(ROOT)
    assert not exit_code(arguments), f"owl2 {' '.join(arguments)} is refused"


def exit_code(arguments: list[str]) -> int | str | None:
    """How the parser ends: None if work would begin, 0 behind --help and --print_config."""
    try:
        main(arguments)
    except Parsed:
        return None
    except SystemExit as stop:
        return stop.code
    pytest.fail(f"owl2 {' '.join(arguments)} parsed nothing")


def test_a_command_that_the_program_does_not_take_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for refused in (["chat"], ["chat", "folder", "--picture", "cat.jpg"], ["demo", "--preset", "large"]):
        with pytest.raises(AssertionError, match="is refused"):
            check_owl2(refused, monkeypatch)
    with pytest.raises(AssertionError, match="is refused"):
        check_owl2(["train", "tiny", "--optim.rate", "1"], monkeypatch)
    with pytest.raises(AssertionError, match="has no"):
        check_make(["everything"])


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_setting, _ = argument.partition("=")
        pattern = rf"^{name} \?=" if is_setting else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


def test_every_command_of_the_program_is_documented() -> None:
    shown = {
        words[1] for _, words in commands() if words and Path(words[0]).name == "owl2" and len(words) > 1
    }
    assert shown >= {module for group in COMMANDS.values() for module in group}


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "owl2", "--help"],
        ["-m", "owl2", "--version"],
        ["-m", "owl2", "train", "tiny", "--print_config"],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_cheap_command_runs(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{block.name}: {block.text[:40]!r}")
def test_python_compiles_and_its_names_exist(block: Block) -> None:
    import owl2
    from owl2.api import Owl2
    from owl2.generate import ChatSession
    from owl2.processor import Processor

    owners = {"owl2": owl2, "owl": Owl2, "session": ChatSession, "owl.processor": Processor}
    instance_fields = {"owl.model", "owl.processor"}
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) not in instance_fields:
            owner = owners.get(ast.unparse(node.value))
            assert owner is None or hasattr(owner, node.attr), f"{ast.unparse(node)} does not exist"


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"{block.name}: {block.text[:30]!r}")
def test_settings_are_those_of_a_stage(block: Block) -> None:
    settings = yaml.safe_load(block.text)
    check_fields(TrainConfig, settings)
    check_fields(DataConfig, settings.get("data", {}))
    check_fields(EmaConfig, settings.get("ema", {}))
    check_fields(LoraConfig, settings.get("lora", {}))
    check_fields(ParallelConfig, settings.get("parallel", {}))
    check_fields(ValidationConfig, settings.get("validation", {}))
    held_out = settings.get("validation", {}).get("sources", [])
    for source in settings.get("data", {}).get("sources", []) + held_out:
        check_fields(SourceConfig, source)
    for rule in settings.get("rules", []):
        check_fields(Rule, rule)


def check_fields(config: type, settings: dict[str, object]) -> None:
    known = {field.name for field in dataclasses.fields(config)}
    assert settings.keys() <= known, f"{config.__name__} has no {sorted(settings.keys() - known)}"


def test_json_is_json() -> None:
    for block in blocks("json"):
        json.loads(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("http://", "https://", "#")):
            assert (page.parent / link.split("#")[0]).exists(), f"{page.name} links to {link}"
    for name in re.findall(r"`((?:owl2|tests|bench|docs)/[\w./]*\w)`", text):
        assert (ROOT / name).exists(), f"{page.name} speaks of {name}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {file for entry in navigation for file in entry.values()}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_walks_of_the_design_page_pass_functions_that_are_there() -> None:
    text = (ROOT / "docs" / "design.md").read_text().split("## Three walks")[1].split("\n## ")[0]
    steps = re.findall(r"`([\w/]+\.py): (\w+)`", text)
    assert len(steps) == 12 + 11 + 14
    for file, name in steps:
        tree = ast.walk(ast.parse((ROOT / "owl2" / file).read_text()))
        assert name in {n.name for n in tree if isinstance(n, ast.FunctionDef | ast.ClassDef)}, (
            f"{file}: {name}"
        )


def test_the_start_page_names_every_other_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not {name for name in pages if f"]({name})" not in text}


def test_the_demo_page_names_every_preset_and_every_package() -> None:
    text = (ROOT / "docs" / "demo.md").read_text()
    for name in (*PRESETS, *ASSETS):
        assert f"`{name}`" in text


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    names = {Requirement(requirement).name for requirement in wanted} - {"owl2"}
    text = (ROOT / "docs" / "dependencies.md").read_text()
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing, f"docs/dependencies.md gives no reason for {missing}"


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()

"""Whatever is given to an option: the command works or says one thing, and never shows a traceback."""

import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from owl2.__main__ import functions_of, main
from owl2.cli.parser import parameters
from owl2.cli.settings import Settings, keys_of
from owl2.train.config import TrainConfig
from tests.cli.test_values import TEXTS

NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "1e-9",
    "1e300",
    "inf",
    "-inf",
    "nan",
    str(2**31),
    str(2**63),
    str(-(10**30)),
]
PLACES = [
    "checkpoint",
    "a.png",
    "talk.jsonl",
    "stage.yaml",
    "file",
    "file/x",
    "empty",
    "broken.png",
    "/dev/null",
]
TREES = [
    "[]",
    "[[]]",
    "{}",
    "[a, b]",
    "[1, 2]",
    "[{}]",
    "{name: a}",
    "[{name: a, path: talk.jsonl}]",
    "[{match: '*'}]",
]
ANYTHING = st.text(st.characters(exclude_characters="\0"), max_size=12)
"""Half surrogate pairs included, as an argument that is not UTF-8 has them."""

COMMANDS = {
    "chat": ["chat", "checkpoint", "--message=hi", "--max_new_tokens=2"],
    "train": ["train", "stage.yaml"],
    "plan": ["plan", "stage.yaml", "--gpus=1", "--model=tiny"],
    "data inspect": ["data", "inspect", "talk.jsonl", "--out=page.html"],
    "eval run": [
        "eval",
        "run",
        "checkpoint",
        "--tasks=vqav2",
        "--template=owl2-2024",
        "--data=bench",
        "--out=out",
    ],
}
LAST = {"train": ["--model=nothing"], "plan": ["--steps=4"]}
"""Keeps a valid command from training for ever; the settings are checked before."""


def options_of(command: str) -> dict[str, st.SearchStrategy[str]]:
    """Values for each option of a command, most of them such as its type has."""
    module, _, name = command.partition(" ")
    kinds: dict[str, Any] = {}
    for parameter in parameters(functions_of(module)[name]):
        if parameter.kind is Settings:
            kinds |= {f"--{key.name}": key.kind for key in keys_of(TrainConfig)}
        elif not parameter.is_word:
            kinds[parameter.label] = parameter.kind
    return {option: values_of(kind) for option, kind in kinds.items()}


def values_of(kind: Any) -> st.SearchStrategy[str]:
    parts = [kind, *typing.get_args(kind)]
    fitting = [
        str(word) for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)
    ]
    fitting += [*TEXTS, *PLACES] if {str, Path} & {*parts} else []
    fitting += NUMBERS if {int, float} & {*parts, *(typing.get_args(part) for part in parts)} else []
    anything = st.sampled_from([*TEXTS, *NUMBERS, *PLACES, *TREES]) | ANYTHING
    return st.sampled_from(fitting or TREES) | st.sampled_from(fitting or TREES) | anything


def exit_code(words: list[str]) -> int | str | None:
    try:
        main(words)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_of_any_option_is_a_traceback(
    command: str, desk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    options = options_of(command)

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        words = list(COMMANDS[command])
        for option in data.draw(st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=3)):
            words.append(f"{option}={data.draw(options[option])}")
        code = exit_code([*words, *LAST.get(command, [])])
        error = capfd.readouterr().err
        assert code in (0, 1, 2)
        assert "Traceback" not in error
        if code:
            assert f"owl2 {command}: " in error or "could not be asked" in error

    run()
    assert Path("/dev/null").is_char_device()

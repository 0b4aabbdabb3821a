"""Every command: help at once without heavy packages, one spelling, the nearest for a typo, completion."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from owl2.__main__ import COMMANDS, functions_of, main
from owl2.cli.parser import Function, Parser, parameters
from owl2.cli.plan import plan
from owl2.cli.settings import Settings
from owl2.errors import Owl2Error, Owl2Warning

ROOT = Path(__file__).parents[2]
MODULES = [module for group in COMMANDS.values() for module in group]
FUNCTIONS = {
    f"{module} {name}".strip(): function
    for module in MODULES
    for name, function in functions_of(module).items()
}
LIGHT = {"owl2", "yaml"}


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "owl2", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


HELP = """
import sys, time
before = set(sys.modules)
from owl2.__main__ import main
for words in {words}:
    begin = time.perf_counter()
    try:
        main([*words.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, stop.code
    print("SECONDS", time.perf_counter() - begin)
found = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("MODULES", *sorted(found - sys.stdlib_module_names))
"""


@pytest.mark.parametrize("command", ["", "data", "eval", *FUNCTIONS])
def test_help_comes_at_once_and_without_heavy_packages(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(words=[command])], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *shown, seconds, modules = done.stdout.splitlines()
    assert shown[0].startswith(f"usage: owl2 {command}".strip())
    assert float(seconds.split()[1]) < 1
    assert {module for module in modules.split()[1:] if "cython" not in module} <= LIGHT, modules


def test_every_parameter_of_every_command_is_documented() -> None:
    for command, function in FUNCTIONS.items():
        for parameter in parameters(function):
            assert parameter.doc or parameter.kind is Settings, f"{command} {parameter.name}"


def test_the_overview_has_every_command_and_a_group_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        main(words)
        shown = capsys.readouterr().out
        assert all(f"  {command} " in shown for command in FUNCTIONS)
    for group in ("data", "eval"):
        main([group])
        shown = capsys.readouterr().out
        assert all((f"  {command} " in shown) == command.startswith(group) for command in FUNCTIONS)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_the_help_of_a_command_names_all_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert all(p.label in shown for p in parameters(FUNCTIONS[command]) if p.kind is not Settings)
    if command == "chat":
        assert "-m, --message TEXT" in shown
    if command == "train":
        assert "--data.max_tokens N" in shown
        assert "longer ones" in shown.replace("\n", " "), "the text below the field"


def words_of(function: Function) -> Iterator[tuple[str, Any]]:
    """(option, kind) of what may hold text."""
    for parameter in parameters(function):
        kind = parameter.kind if parameter.item is None else parameter.item
        if {str, Path} & {kind, *typing.get_args(kind)}:
            yield parameter.name, kind


@pytest.mark.parametrize("command", FUNCTIONS)
@pytest.mark.parametrize("text", ["#1.png", "null", "~", "1e3", "[a]", "{a: b}", "yes", "&x", "- x", "x "])
def test_every_text_and_path_of_every_command_arrives_as_it_was_typed(command: str, text: str) -> None:
    function = FUNCTIONS[command]
    needed = {p.name: "1" for p in parameters(function) if p.default is MISSING and p.kind is not Settings}
    for name, kind in words_of(function):
        words = [f"--{key}={value}" for key, value in {**needed, name: text}.items()]
        value = Parser(prog="owl2", function=function).parse(words)[name]
        value = value[0] if isinstance(value, list) else value
        members = typing.get_args(kind) or (kind,)
        assert value == (text if str in members else Path(text)), name


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_dash_and_an_underscore_are_the_same_in_every_option(command: str) -> None:
    function = FUNCTIONS[command]
    names = {p.label for p in parameters(function) if not p.is_word and "_" in p.name}
    if command in ("train", "plan"):
        names |= {"--data.max_tokens", "--optim.warmup_steps", "--validation.max_samples", "--skip_nonfinite"}
    for name in names:
        spelled = []
        for option in (name, "--" + name[2:].replace("_", "-")):
            parser = Parser(prog="owl2", function=function)
            spelled.append(parser._spelled([option, "3", f"{option}=a_b-c"]))
        assert spelled[0] == spelled[1]
        assert spelled[0][-1] == f"{name}=a_b-c", "its value stays as it is"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chta"], "owl2: no command 'chta'; the nearest is 'chat' of demo, chat, "),
        (["--versoin"], "owl2: no option '--versoin'; the nearest is '--version'"),
        (["-v"], "owl2: no option '-v'; the nearest is "),
        (["eval", "rnu"], "owl2 eval: no command 'rnu'; the nearest is 'run' of run, data, "),
        (["data", "inspct"], "owl2 data: no command 'inspct'; the nearest is 'inspect'"),
        (["chat", "x", "--mesage", "y"], "owl2 chat: no option '--mesage'; the nearest is '--message'"),
        (["chat", "x", "--Message=y"], "the nearest is '--message'"),
        (["chat", "x", "-x"], "owl2 chat: no option '-x'; see owl2 chat --help"),
        (["demo", "--preset", "tinny"], "'tinny' is not one of tiny, small, smoke; the nearest is 'tiny'"),
        (["plan", "x", "--gpus", "8", "--gpu", "h10"], "the nearest is 'h100'"),
        (["init", "--vision", "a"], "owl2 init: missing: --language, --out; usage: owl2 init --vision PATH"),
        (["chat"], "owl2 chat: missing: CHECKPOINT; usage: owl2 chat CHECKPOINT [options]"),
        (["chat", "a", "b"], "owl2 chat: one word too many: 'b'; usage: owl2 chat CHECKPOINT [options]"),
        (["chat", "--", "a", "-b"], "owl2 chat: one word too many: '-b'"),
        (["chat", "x", "-m"], "--message needs a value; one that begins with - is written --message=VALUE"),
        (["chat", "x", "-m", "-x"], "--message needs a value; one that begins with -"),
        (["eval", "judge", "x", "--yes=maybe"], "--yes must be true or false, not 'maybe'"),
        (["--print-completion", "bsh"], "'bsh' is not one of bash"),
    ],
)
def test_a_wrong_use_is_one_line_with_the_nearest_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("owl2")
    assert err.count("\n") == 1


def test_words_may_stand_anywhere_and_be_given_by_name() -> None:
    function = FUNCTIONS["eval report"]
    expected = {"folders": [Path("a"), Path("b")], "out": Path("o")}
    for words in ("a b --out o", "--out o a b", "a --out=o b", "--folders a --folders b --out o"):
        assert Parser(prog="owl2", function=function).parse(words.split()) == expected
    run_ = FUNCTIONS["eval run"]
    for words in ("--tasks t ck --out o", "ck --tasks t --out o", "--checkpoint ck --tasks t --out o"):
        values = Parser(prog="owl2", function=run_).parse(words.split())
        assert values == {"checkpoint": "ck", "tasks": "t", "out": Path("o")}


def test_a_switch_takes_no_word() -> None:
    judge = FUNCTIONS["eval judge"]
    for words in (["--yes", "run"], ["run", "--yes"], ["run", "--yes=true"]):
        assert Parser(prog="owl2", function=judge).parse(words) == {"folder": Path("run"), "yes": True}
    assert Parser(prog="owl2", function=judge).parse(["run", "--yes=no"])["yes"] is False


def test_the_gpus_of_the_option_are_those_that_can_be_planned() -> None:
    from owl2.train.plan.plan import GPUS

    kind = typing.get_type_hints(plan)["gpu"]
    assert typing.get_args(kind) == tuple(GPUS)


COMPLETE = """
eval "$({python} -m owl2 --print-completion bash)"
function=$(complete -p owl2 | sed 's/.*-F \\([^ ]*\\).*/\\1/')
complete_words() {{
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
  "$function" owl2 "${{COMP_WORDS[COMP_CWORD]}}" ""
  echo "${{COMPREPLY[*]}}"
}}
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A script that defines `complete_words`, with the completion written once."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    pytest.importorskip("shtab")
    return COMPLETE.format(python=sys.executable)


def test_bash_completes_commands_options_choices_and_files(bash: str, tmp_path: Path) -> None:
    (tmp_path / "owl.png").touch()
    cases = {
        "owl2 ''": " ".join(MODULES),
        "owl2 da": "data",
        "owl2 eval ''": "run data show score judge report compare export",
        "owl2 chat --max": "--max_new_tokens",
        "owl2 demo --preset ''": "tiny small smoke",
        "owl2 train --optim.w": "--optim.warmup_steps --optim.weight_decay",
        "owl2 train x.yaml --dtype ''": "float32 bfloat16 auto",
        "owl2 chat x --image ow": "owl.png",
        "owl2 eval judge x --yes --par": "--parallel",
    }
    script = bash + "cd '" + str(tmp_path) + "'\n" + "\n".join(f"complete_words {words}" for words in cases)
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert dict(zip(cases, done.stdout.splitlines(), strict=True)) == cases


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    main(["--print_completion", shell])
    assert "max_new_tokens" in capsys.readouterr().out


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `owl2 report` raise this."""

    def report(run: Path) -> None:
        """Write a page."""
        raise error

    monkeypatch.setattr("owl2.cli.report.report", report)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (Owl2Error("x is wrong"), "owl2 report: x is wrong\n", 1),
        (KeyboardInterrupt(), "owl2 report: stopped\n", 130),
        (BrokenPipeError(), "", 141),
        (OSError(28, "No space", "a/b"), "owl2 report: a/b: no space left on the device\n", 1),
        (PermissionError(13, "Permission denied", b"a"), "owl2 report: a: permission denied\n", 1),
        (OSError(30, "Read-only", "a"), "owl2 report: a: the file system is read-only\n", 1),
        (OSError("a library's\nown words"), "owl2 report: a library's own words\n", 1),
        (UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "x"), "is not UTF-8, near b'caf\\xe9'\n", 1),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "x"), "is not UTF-8, near 'caf\\udce9'\n", 1),
        (ModuleNotFoundError("x", name="av.codec"), "`pip install av`, or the extra that has it\n", 1),
        (ImportError("x needs y: pip install y"), "owl2 report: x needs y: pip install y\n", 1),
        (MemoryError(), "owl2 report: out of memory.\n", 1),
    ],
)
def test_what_a_user_can_put_right_is_one_line(
    error: BaseException,
    message: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(error, monkeypatch)
    with pytest.raises(SystemExit, match=str(code)):
        main(["report", "x"])
    err = capsys.readouterr().err
    assert err.endswith(message)
    assert err.count("\n") == message.count("\n")


@pytest.mark.parametrize(
    "error", [KeyError("x"), ModuleNotFoundError("x", name="owl2.nothing"), ValueError()]
)
def test_a_defect_of_ours_keeps_its_traceback_and_asks_for_a_report(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(error, monkeypatch)
    with pytest.raises(type(error)) as raised:
        main(["report", "x"])
    assert "please report it" in "".join(raised.value.__notes__)


def test_ctrl_c_says_which_commands_go_on_where_they_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        """Begin."""
        raise KeyboardInterrupt

    for command in ("convert", "data convert", "eval run", "eval report"):
        module, _, name = command.partition(" ")
        if name:
            monkeypatch.setitem(sys.modules[f"owl2.cli.{module}"].COMMANDS, name, interrupted)
        else:
            monkeypatch.setattr(f"owl2.cli.{module}.{module}", interrupted)
        with pytest.raises(SystemExit, match="130"):
            main(command.split())
        goes_on = "; the same command continues it" * (command in ("data convert", "eval run"))
        assert capsys.readouterr().err == f"owl2 {command}: stopped{goes_on}\n"


def test_a_request_to_stop_ends_with_75_and_is_said_by_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from owl2.train.signals import Interrupted

    raising(Interrupted("state saved"), monkeypatch)
    for rank, said in (("0", "owl2 report: state saved\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="75"):
            main(["report", "x"])
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(("command", "code"), [("train", 75), ("demo", 75), ("report", None)])
def test_a_signal_while_a_run_starts_is_a_request_to_stop(
    command: str, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, received = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda *_: received.append(1))

    def preempted() -> None:
        """Start."""
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(f"owl2.cli.{command}.{command}", preempted)
    try:
        if code is None:
            main([command])
        else:
            with pytest.raises(SystemExit, match="75"):
                main([command])
            assert capsys.readouterr().err == f"owl2 {command}: stopped; the same command continues it\n"
        assert len(received) == (code is None), "what the caller had set is there again"
        signal.raise_signal(signal.SIGTERM)
        assert len(received) == 1 + (code is None)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_warning_to_users_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    from owl2.__main__ import _short_warnings

    with _short_warnings():
        assert warnings.formatwarning("x", Owl2Warning, "file", 1) == "warning: x\n"
        assert "file:1: UserWarning: x" in warnings.formatwarning("x", UserWarning, "file", 1)


def test_an_ascii_terminal_shows_tables_and_bars_in_ascii(desk: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for words in (["list", "--source", "."], ["inspect", "talk.jsonl", "--out", "page.html"]):
        done = run("data", *words, cwd=desk, **ascii_only)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert "\\" not in done.stdout, "nothing is shown as an escape"
    done = run("chat", "checkpoint", "-m", "\N{OWL}", "--max-new-tokens=3", cwd=desk, **ascii_only)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("script") is None, reason="no program that makes a terminal")
def test_bars_on_an_ascii_terminal_do_not_fail(desk: Path) -> None:
    command = shlex.join(
        [sys.executable, "-m", "owl2", "chat", "checkpoint", "-m", "hi", "--max-new-tokens=3"]
    )
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd=desk,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONIOENCODING": "ascii",
            "LC_ALL": "C",
            "TERM": "xterm",
        },
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert b"Loading" in done.stdout
    assert done.stdout.isascii()


def test_a_reader_that_has_seen_enough_ends_the_program_quietly() -> None:
    command = f"{sys.executable} -m owl2 eval data | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("141", "0"), "0 where all of it fits into the pipe"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    command = f"{sys.executable} -m owl2 eval data > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "owl2 eval data: no space left on the device\n")

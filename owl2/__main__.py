"""The command line: `owl2 COMMAND ...`, one function a command in `owl2/cli/`.

Only the chosen command is imported, so help comes at once. Arguments and their help are the function's own
signature and docstring (jsonargparse); what a user did wrong is one line on standard error and exit code 1.
"""

import importlib
import sys
from collections.abc import Callable, Sequence

COMMANDS = {
    "demo": "the whole paper on a laptop: data, both training stages, examination, report",
    "chat": "ask a checkpoint about images",
    "data": "make corpora trainable, and look at samples as the model sees them",
    "train": "run or continue a training stage",
    "plan": "memory, traffic and days of a stage on GPUs that are not there yet",
    "report": "curves and facts of a training run as one page, at any time",
    "eval": "benchmarks beside the paper's numbers: run, score, report, compare",
    "init": "make a new model of a vision encoder and a language model",
    "convert": "write a released checkpoint as safetensors, bit for bit",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; `argv` defaults to the program's arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-h", "--help"):
        print("usage: owl2 COMMAND [options]   (owl2 COMMAND --help lists them)\n")
        print("\n".join(f"  {name:8} {line}" for name, line in COMMANDS.items()))
        return
    if command == "--version":
        import owl2

        print(f"owl2 {owl2.__version__}")
        return
    if command not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(command, COMMANDS, n=1, cutoff=0)[0]
        print(f"owl2: no command {command!r}; nearest is {near!r} of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    run: Callable[[list[str]], None] = importlib.import_module(f"owl2.cli.{command}").main
    run(arguments)


if __name__ == "__main__":
    main()

"""`owl2 eval run|data|score|judge|report|compare|export`: benchmarks beside the paper's numbers.

Exit codes: 0 done, 1 an error that the message explains, or a task none of whose questions could be asked.
Under torchrun each rank answers its share (RANK, WORLD_SIZE, LOCAL_RANK). Packages are imported when a
command runs, so that `owl2 --help` does not wait for torch.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from owl2.cli.arguments import run_function

if TYPE_CHECKING:
    from owl2.eval.engines.engine import Engine
    from owl2.eval.runner import Shard
    from owl2.eval.scoring.score import TaskResult
    from owl2.eval.task import Items


def main(arguments: Sequence[str]) -> None:
    """Run `owl2 eval COMMAND`."""
    words = [_underscored(word) for word in arguments]
    name = words.pop(0) if words else "--help"
    if name in ("-h", "--help"):
        print("usage: owl2 eval COMMAND [options]   (owl2 eval COMMAND --help lists them)\n")
        for command, function in COMMANDS.items():
            print(f"  {command:8} {(function.__doc__ or '').splitlines()[0]}")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
        print(
            f"owl2 eval: no command {name!r}; nearest is {near!r} of {', '.join(COMMANDS)}", file=sys.stderr
        )
        raise SystemExit(2)
    if name in LEADING:
        words = _name_leading(words, LEADING[name])
    try:
        run_function(COMMANDS[name], words, command=f"eval {name}", aliases={"--yes": "--yes=true"})
    except KeyboardInterrupt:
        print("owl2 eval: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        print(f"owl2 eval {name}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def run(
    *,
    tasks: str,
    out: Path,
    checkpoint: str | None = None,
    data: Path = Path("data"),
    template: str | None = None,
    limit: int | None = None,
    beams: int | None = None,
    batch_size: int = 32,
    batch_tokens: int = 8192,
    endpoint: str | None = None,
    model: str = "owl2",
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Ask a checkpoint (or a server) the questions of benchmarks; the same command continues.

    Args:
        tasks: names with commas between them, or all.
        out: folder of the run: predictions, and the report.
        checkpoint: checkpoint folder or hub id; may stand first, without --checkpoint.
        data: folder of the benchmarks; `owl2 eval data` says what is expected in it.
        template: a named way to ask, for the tasks that have it; default: each task's first, the paper's.
        limit: ask at most this many questions of each task, a seeded sample of its groups.
        beams: beams of the search, 1 for speed; default: the number that belongs to each template.
        batch_size: most questions answered together; answers do not depend on it.
        batch_tokens: most tokens answered together, prompts and answers.
        endpoint: address of an OpenAI-compatible server, such as http://localhost:8000/v1, in place of a
            checkpoint; its key is in OPENAI_API_KEY.
        model: name of the model at that server.
        device: cpu, cuda, cuda:1, ...; under torchrun, cuda is each rank's own.
        dtype: float32, bfloat16 or float16.
    """
    from owl2.eval.report.display import Bar, print_not_run, print_outcomes, print_skipped
    from owl2.eval.runner import (
        Batching,
        RunError,
        check_outcomes,
        check_plans,
        choose_tasks,
        plan_tasks,
        run_plans,
    )

    if (checkpoint is None) == (endpoint is None):
        raise RunError("give a checkpoint, or --endpoint URL and --model NAME, and not both")
    numbers = {"--batch_size": batch_size, "--batch_tokens": batch_tokens, "--limit": limit, "--beams": beams}
    if wrong := [f"{name} {number}" for name, number in numbers.items() if number is not None and number < 1]:
        raise RunError(f"{', '.join(wrong)}: must be 1 or more")
    shard = _shard()
    plans, not_run = plan_tasks(
        choose_tasks(tasks),
        data,
        template=template,
        limit=limit,
        beams=beams,
        has_likelihoods=endpoint is None,
        shard=shard,
    )
    if shard.rank == 0:
        print_not_run(not_run, data)
        print_skipped(plans, out)
    check_plans(plans, not_run, data)
    engine = _engine(checkpoint, endpoint, model, device, dtype)
    with Bar(plans, shard) as bar:
        outcomes = run_plans(
            engine,
            plans,
            data,
            out,
            not_run=not_run,
            batching=Batching(batch_size, batch_tokens),
            shard=shard,
            watch=bar,
        )
    print_outcomes(outcomes)
    if shard.world_size == 1:
        _report([out], out, None, 24, {plan.task.name: plan.loaded for plan in plans})
    elif shard.rank == 0:
        print(f"When all ranks are done: owl2 eval report {out}")
    check_outcomes(outcomes, not_run)


def data(*, data: Path = Path("data"), tasks: str = "all") -> None:
    """List every benchmark: its files, where to get them, licence, present or missing.

    Args:
        data: folder of the benchmarks.
        tasks: names with commas between them, or all.
    """
    from owl2.eval.report.display import print_files
    from owl2.eval.runner import choose_tasks

    print_files(choose_tasks(tasks), data)


def score(folder: Path, *, data: Path | None = None, tasks: str | None = None) -> None:
    """Score a run's answers, without a model, in seconds, and write scores.json.

    Args:
        folder: what `owl2 eval run --out` wrote.
        data: folder of the benchmarks; default: where the run found them.
        tasks: only these, with commas between them.
    """
    from owl2.eval.report.display import print_results
    from owl2.eval.report.rows import Run
    from owl2.eval.runner import read_not_run
    from owl2.eval.scoring.score import write_scores

    results = _score(folder, data, tasks)
    path = write_scores(folder, results)
    print_results([Run(folder.resolve().name, folder, results, read_not_run(folder))])
    print(f"Written: {path}")


def judge(
    folder: Path,
    *,
    endpoint: str | None = None,
    model: str | None = None,
    tasks: str | None = None,
    data: Path | None = None,
    judge_from: Path | None = None,
    runs: int = 1,
    price_in: float = 0.0,
    price_out: float = 0.0,
    parallel: int = 8,
    yes: bool = False,
) -> None:
    """Have free answers graded by a judge model; without --yes, only say what it would cost.

    Args:
        folder: what `owl2 eval run --out` wrote.
        endpoint: address of an OpenAI-compatible server; its key is in OPENAI_API_KEY.
        model: the judge; default: the one of the benchmark's official script.
        tasks: only these, with commas between them; default: all that have a judge.
        data: folder of the benchmarks; default: where the run found them.
        judge_from: take over the grades in this file, as the official script wrote it, and ask no one.
        runs: how often each answer is graded (the paper of MM-Vet takes the mean of 5).
        price_in: per million tokens of prompts, for the estimate.
        price_out: per million tokens of replies.
        parallel: most requests at a time.
        yes: spend it.
    """
    from owl2.eval.judge.grading import Grading, JudgeError, ask_judges
    from owl2.eval.judge.official import import_grades
    from owl2.eval.report.display import grading_bar, print_estimates

    results = [result for result in _score(folder, data, tasks) if result.task.judge or tasks]
    if not results:
        raise JudgeError(f"{folder} has no answers of a task with a judge")
    if judge_from is not None:
        if len(results) != 1:
            names = ", ".join(result.task.name for result in results)
            raise JudgeError(f"{judge_from} holds grades of one task: say which of {names} with --tasks")
        count = import_grades(folder, results[0].task, results[0].answers, judge_from)
        print(f"{count:,} of {len(results[0].answers):,} answers graded by {judge_from}")
        return
    gradings = [Grading(folder, result.task, result.answers, model, runs) for result in results]
    print_estimates(gradings, price_in, price_out)
    if not yes:
        print("Nothing is spent yet: add --yes to ask.")
        return
    if endpoint is None:
        raise JudgeError("no judge to ask: give the judge's address with --endpoint")
    with grading_bar(gradings) as advance:
        unread = ask_judges(gradings, endpoint, parallel=parallel, advance=advance)
    if unread:
        raise JudgeError(
            f"the judge gave no readable grade to {len(unread)} answers: {', '.join(unread[:10])}"
        )


def report(
    *,
    folders: list[Path],
    out: Path | None = None,
    data: Path | None = None,
    failures: int = 24,
) -> None:
    """Write runs next to the paper as Markdown, CSV, JSON and an HTML page, and print the table.

    Args:
        folders: what `owl2 eval run --out` wrote; several are shown together.
        out: where to write report.*; default: the first folder.
        data: folder of the benchmarks; default: where each run found them.
        failures: wrong answers a task that the page shows.
    """
    _report(folders, out or folders[0], data, failures, {})


def _report(
    folders: list[Path], out: Path, data: Path | None, failures: int, loaded: Mapping[str, Items]
) -> None:
    """Score run folders, write the report and print the table; `loaded`: questions already read, by task."""
    from owl2.eval.report.display import print_results
    from owl2.eval.report.rows import Run, name_runs
    from owl2.eval.report.write import write_report
    from owl2.eval.runner import read_not_run
    from owl2.eval.scoring.score import score_run, write_scores

    runs = []
    for name, folder in zip(name_runs(folders), folders, strict=True):
        results = score_run(folder, data, loaded=loaded)
        write_scores(folder, results)
        runs.append(Run(name, folder, results, read_not_run(folder)))
    paths = write_report(runs, out, failures)
    print_results(runs)
    print(f"Written: {', '.join(str(path) for path in paths.values())}")


def compare(a: Path, b: Path, *, data: Path | None = None, out: Path | None = None) -> None:
    """Compare two runs question by question: is B better than A, and could it be chance?

    Args:
        a: what `owl2 eval run --out` wrote.
        b: another such folder, of the same tasks.
        data: folder of the benchmarks; default: where each run found them.
        out: write the comparison here as JSON too.
    """
    from owl2.eval.report.compare import compare as compare_results
    from owl2.eval.report.compare import comparison_json, comparison_table
    from owl2.eval.report.rows import name_runs
    from owl2.files import write_file

    rows = compare_results(_score(a, data, None), _score(b, data, None))
    names = name_runs([a, b])
    print(comparison_table(rows, names[0], names[1]), end="")
    if out is not None:
        write_file(out, comparison_json(rows).encode())


def export(
    folder: Path, *, out: Path | None = None, tasks: str | None = None, data: Path | None = None
) -> None:
    """Write answers as the benchmarks' organisers take them: EvalAI, xlsx, txt, ...

    Args:
        folder: what `owl2 eval run --out` wrote.
        out: where to write; default: FOLDER/submissions.
        tasks: only these, with commas between them.
        data: folder of the benchmarks; default: where the run found them.
    """
    from owl2.eval.report.export import export_task, has_export

    for result in _score(folder, data, tasks):
        if has_export(result.task.name):
            for path in export_task(result, out or folder / "submissions"):
                print(path)
        else:
            print(f"{result.task.name}: scored here, nobody takes submissions", file=sys.stderr)


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "data": data,
    "score": score,
    "judge": judge,
    "report": report,
    "compare": compare,
    "export": export,
}
LEADING = {"run": "--checkpoint", "report": "--folders+"}
"""Arguments that may stand first without their name."""


def _underscored(word: str) -> str:
    """`--batch-size` is `--batch_size`."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}"


def _name_leading(words: list[str], option: str) -> list[str]:
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return [part for word in words[:count] for part in (option, word)] + words[count:]


def _user_errors() -> tuple[type[Exception], ...]:
    from owl2.api import USER_ERRORS
    from owl2.eval.errors import EVAL_ERRORS

    return (*USER_ERRORS, *EVAL_ERRORS)


def _shard() -> Shard:
    from owl2.eval.runner import Shard

    return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def _engine(checkpoint: str | None, endpoint: str | None, model: str, device: str, dtype: str) -> Engine:
    if endpoint is not None:
        from owl2.eval.engines.chat_client import ChatClient
        from owl2.eval.engines.endpoint import EndpointEngine

        return EndpointEngine(ChatClient(endpoint, model))
    from owl2.api import load
    from owl2.eval.engines.local import OwlEngine

    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    return OwlEngine(load(str(checkpoint), device, dtype, progress=sys.stderr.isatty()), str(checkpoint))


def _score(folder: Path, data: Path | None, tasks: str | None) -> list[TaskResult]:
    from owl2.eval.scoring.score import score_run

    return score_run(folder, data, tasks.split(",") if tasks else None)

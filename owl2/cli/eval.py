"""`owl2 eval`: benchmarks, compared with the paper's numbers.

Under torchrun each rank answers its share (RANK, WORLD_SIZE, LOCAL_RANK).
"""

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from owl2.cli.values import Amount, Count, Seed, UsageError, read

if TYPE_CHECKING:
    from owl2.eval.engines.engine import Engine
    from owl2.eval.engines.local import OwlEngine
    from owl2.eval.runner import Shard
    from owl2.eval.scoring.score import TaskResult
    from owl2.eval.task import Items


def run(
    checkpoint: str | None = None,
    *,
    tasks: str | None = None,
    out: Path,
    questions: list[Path] | None = None,
    metric: str | None = None,
    image_root: Path | None = None,
    data: Path = Path("data"),
    template: str | None = None,
    limit: Count | None = None,
    beams: Count | None = None,
    batch_size: Count = 32,
    batch_tokens: Count = 8192,
    endpoint: str | None = None,
    model: str = "owl2",
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Answer the questions of benchmarks with a checkpoint or a server; the same command continues.

    Exit code 1 if none of a task's questions could be asked.

    Args:
        checkpoint: checkpoint folder, or a Hugging Face hub id such as owner/name.
        tasks: names of benchmarks, separated by commas, or all.
        out: folder of the run: predictions and report.
        questions: file of your own questions, JSON lines or a JSON array; may be repeated.
        metric: of your own questions: exact, contains, choice, yes_no, number, relaxed (within 5 %), f1, vqa
            or cider; default: the one that suits each row.
        image_root: where the image paths of your own questions begin; default: the folder of their file.
        data: folder of the benchmarks; `owl2 eval data` lists the files that belong there.
        template: prompt template, for the tasks that have it; default: each task's first, the paper's.
        limit: most questions of each task, a seeded sample of its groups; default: all.
        beams: beams of the search, 1 for speed; default: the number that belongs to each template.
        batch_size: most questions answered together; answers do not depend on it.
        batch_tokens: most tokens answered together, prompts and answers.
        endpoint: address of an OpenAI-compatible server, such as http://localhost:8000/v1, instead of a
            checkpoint; its key is in OPENAI_API_KEY.
        model: name of the model at that server.
        device: cpu, cuda, cuda:1, ...; under torchrun, cuda is each rank's own.
        dtype: type of the weights and the computation.
    """
    given = dict(locals())
    from owl2.eval.questions import own_questions
    from owl2.eval.report.display import Bar, print_not_run, print_outcomes, print_skipped
    from owl2.eval.runner import (
        Batching,
        check_names,
        check_outcomes,
        check_plans,
        choose_tasks,
        plan_tasks,
        run_plans,
    )
    from owl2.provenance import recorded

    if (checkpoint is None) == (endpoint is None):
        raise UsageError("give a checkpoint, or --endpoint URL and --model NAME, and not both")
    if tasks is None and not questions:
        raise UsageError("nothing to ask: give --tasks NAME,NAME or --questions FILE.jsonl")
    own = [own_questions(file, metric or "", root=image_root) for file in questions or ()]
    check_names(own)
    shard = own_shard()
    plans, not_run = plan_tasks(
        [*(choose_tasks(tasks) if tasks is not None else ()), *own],
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
    out.mkdir(parents=True, exist_ok=True)  # before the weights, which take longer
    with recorded(out, {"config": given}) if shard.rank == 0 else nullcontext() as record:
        engine = _engine(checkpoint, endpoint, model, device, dtype)
        if record is not None:
            marks = {plan.task.name: _mark(plan.loaded) for plan in plans}
            record.update(
                {"fingerprints": {"model": engine.identity, "data": marks}}, processes=shard.world_size
            )
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
    """List the files of every benchmark: whether they are there, where to get them, their licence.

    Args:
        data: folder of the benchmarks.
        tasks: names of benchmarks, separated by commas, or all.
    """
    from owl2.eval.report.display import print_files
    from owl2.eval.runner import choose_tasks

    print_files(choose_tasks(tasks), data)


def show(
    task: str | None = None,
    *,
    questions: Path | None = None,
    image_root: Path | None = None,
    template: str | None = None,
    n: Count = 3,
    data: Path = Path("data"),
    out: Path | None = None,
) -> None:
    """Print what a benchmark asks: prompts as a model gets them, images, references, decoding.

    Args:
        task: name of a benchmark.
        questions: file of your own questions instead.
        image_root: where their image paths begin; default: the folder of their file.
        template: prompt template; default: the task's first, the paper's.
        n: number of questions, a seeded sample.
        data: folder of the benchmarks.
        out: HTML page to write, with the images.
    """
    from owl2.eval.questions import own_questions
    from owl2.eval.report.show import Shown
    from owl2.eval.task import find_task
    from owl2.pages.page import write_page

    if (task is None) == (questions is None):
        raise UsageError("give the name of a benchmark or --questions FILE.jsonl, and not both")
    chosen = own_questions(questions, root=image_root) if questions is not None else find_task(str(task))
    shown = Shown(chosen, data, template, n)
    print(shown.text())
    if out is not None:
        write_page(out, shown.page())
        print(f"Written: {out}")


def score(folder: Path, *, data: Path | None = None, tasks: str | None = None) -> None:
    """Score a run's answers in seconds, without a model, and write scores.json.

    Args:
        folder: folder of `owl2 eval run`.
        data: folder of the benchmarks; default: where the run found them.
        tasks: names of benchmarks, separated by commas; default: all of the run.
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
    runs: Count = 1,
    price_in: Amount = 0.0,
    price_out: Amount = 0.0,
    parallel: Count = 8,
    yes: bool = False,
) -> None:
    """Grade free answers with a judge model; without --yes, only estimate the cost.

    Args:
        folder: folder of `owl2 eval run`.
        endpoint: address of an OpenAI-compatible server; its key is in OPENAI_API_KEY.
        model: name of the judge; default: that of the benchmark's official script.
        tasks: names of benchmarks, separated by commas; default: all that need a judge.
        data: folder of the benchmarks; default: where the run found them.
        judge_from: file of grades, as the official script writes it, to use instead of a judge.
        runs: number of times each answer is graded (the paper of MM-Vet takes the mean of 5).
        price_in: price of a million prompt tokens, for the estimate.
        price_out: price of a million reply tokens.
        parallel: most requests at a time.
        yes: send the requests, at their cost.
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
    folders: list[Path],
    *,
    out: Path | None = None,
    data: Path | None = None,
    failures: Seed = 24,
) -> None:
    """Write runs next to the paper as Markdown, CSV, JSON and an HTML page, and print the table.

    Args:
        folders: folders of `owl2 eval run`; several are shown together.
        out: folder to write report.* to; default: the first of them.
        data: folder of the benchmarks; default: where each run found them.
        failures: most wrong answers of each task on the page.
    """
    _report(folders, out or folders[0], data, failures, {})


def _report(
    folders: list[Path], out: Path, data: Path | None, failures: int, loaded: "Mapping[str, Items]"
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
        a: folder of `owl2 eval run`.
        b: another such folder, of the same tasks.
        data: folder of the benchmarks; default: where each run found them.
        out: JSON file to write the comparison to as well.
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
    """Write answers in the form that the benchmarks' organisers take: EvalAI, xlsx, txt, ...

    Args:
        folder: folder of `owl2 eval run`.
        out: folder to write to; default: FOLDER/submissions.
        tasks: names of benchmarks, separated by commas; default: all of the run.
        data: folder of the benchmarks; default: where the run found them.
    """
    from owl2.eval.report.export import export_task, has_export

    for result in _score(folder, data, tasks):
        if has_export(result.task.name):
            for path in export_task(result, out or folder / "submissions"):
                print(path)
        else:
            print(f"{result.task.name}: scored here, nobody takes submissions", file=sys.stderr)


COMMANDS = {
    "run": run,
    "data": data,
    "show": show,
    "score": score,
    "judge": judge,
    "report": report,
    "compare": compare,
    "export": export,
}


def own_shard() -> "Shard":
    """The part of this process, as torchrun says; else all."""
    from owl2.eval.runner import Shard

    names = (("RANK", "0"), ("WORLD_SIZE", "1"))
    return Shard(*(read(os.environ.get(name, default), Seed, name) for name, default in names))


def _mark(loaded: "Items") -> str:
    """A fingerprint of the questions of a benchmark and their references."""
    from owl2.eval.hashing import short_hash

    return short_hash("\n".join(f"{i.id} {i.question} {i.choices} {i.references}" for i in loaded.items))


def _engine(checkpoint: str | None, endpoint: str | None, model: str, device: str, dtype: str) -> "Engine":
    if endpoint is not None:
        from owl2.eval.engines.chat_client import ChatClient
        from owl2.eval.engines.endpoint import EndpointEngine

        return EndpointEngine(ChatClient(endpoint, model))
    return load_engine(str(checkpoint), device, dtype)


def load_engine(checkpoint: str, device: str, dtype: str) -> "OwlEngine":
    """A checkpoint as an engine; under torchrun, `cuda` is the rank's own GPU."""
    from owl2.api import load
    from owl2.eval.engines.local import OwlEngine

    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    return OwlEngine(load(checkpoint, device, dtype, progress=sys.stderr.isatty()), checkpoint)


def _score(folder: Path, data: Path | None, tasks: str | None) -> "list[TaskResult]":
    from owl2.eval.scoring.score import score_run

    return score_run(folder, data, tasks.split(",") if tasks else None)

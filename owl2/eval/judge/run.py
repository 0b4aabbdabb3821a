"""Grading the tasks of a run: what it will cost first, then one bar for all requests."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from owl2.eval.engines.chat_client import ChatClient
from owl2.eval.judge.grading import Grading, JudgeError
from owl2.eval.judge.prompts import JUDGES
from owl2.eval.scoring.score import TaskResult


def grade_tasks(
    folder: Path,
    results: Sequence[TaskResult],
    endpoint: str | None,
    model: str | None,
    runs: int,
    prices: tuple[float, float],
    parallel: int,
    is_agreed: bool,
) -> list[str]:
    """Print the estimate and, if agreed, grade; return `task/id` of answers without a readable grade.

    Args:
        model: the judge; None for each benchmark's own.
        prices: per million tokens of prompts and of replies.

    Raises:
        JudgeError: a task without a judge, or nobody to ask.
        EndpointError: the server cannot be used; what it said so far is kept.
    """
    gradings = [
        (result, Grading(folder, result.task, result.answers, model or own_judge(result), runs))
        for result in results
    ]
    for result, grading in gradings:
        estimate = grading.estimate()
        cost = f", about {estimate.cost(*prices):.2f}" if any(prices) else ""
        print(
            f"{result.task.name}: {estimate.calls:,} requests to {grading.model} ({estimate.cached:,} graded "
            f"already), about {estimate.prompt_tokens:,} tokens in and {estimate.new_tokens:,} out{cost}"
        )
    if not is_agreed:
        print("Nothing is spent yet: add --yes to ask.")
        return []
    if endpoint is None:
        raise JudgeError("nobody to ask: give the judge's address with --endpoint")
    unread = []
    for result, grading in gradings:
        client = ChatClient(endpoint, grading.model)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            step = partial(bar.advance, bar.add_task(result.task.name, total=len(grading.calls)))
            names = grading.ask(client, parallel=parallel, advance=step)
        unread += [f"{result.task.name}/{name}" for name in names]
    return unread


def own_judge(result: TaskResult) -> str:
    """The model that the benchmark's official script asks."""
    if result.task.judge is None:
        raise JudgeError(f"{result.task.name} is scored without a judge")
    return JUDGES[result.task.judge].model

"""`owl2 train CONFIG --overfit 8`: train on a few samples until their answers come back word for word.

If they do, labels, template, images, trainable parameters and generation fit each other: a mistake in any of
them (a label one token late, an image that is not where the text says, an answer that never ends) keeps some
answer from coming back, however low the loss is. Nothing of it reaches the stage: it has a folder of its own,
`RUN-overfit`, and leaves no checkpoint.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from owl2.data.dataset import SampleDataset
from owl2.data.order import Draw, Mixture
from owl2.errors import Owl2Error
from owl2.processor import Encoding
from owl2.train.answers import SAMPLES, Answer, Question, answer, questions_of
from owl2.train.config import TrainConfig, TrainConfigError
from owl2.train.loop import Run, prepare, take_step
from owl2.train.metrics import append_row, console_line
from owl2.train.prepare import check_machine, make_loader, on_this_machine, open_run_folder
from owl2.train.ranks import local_device, start_ranks, started

STEPS = 400
"""Most steps."""
EVERY = 20
"""Steps between two tries to answer."""
LOW_LOSS = 0.05
"""Below it the samples are learned, and an answer that differs has another reason."""


class OverfitError(Owl2Error, RuntimeError):
    """Answers that did not come back; the message says how many, and where to look."""


class Chosen(Mixture):
    """The same few draws again and again."""

    def __init__(self, mixture: Mixture, draws: list[Draw]):
        super().__init__(mixture.sizes, mixture.weights, mixture.seed)
        self.draws = draws

    def __getitem__(self, n: int) -> Draw:
        return self.draws[n % len(self.draws)]


def overfit(config: TrainConfig, num_samples: int, console: Console | None = None) -> None:
    """Train on the first samples that the stage draws, and return when all their answers come back.

    Prints a table of expected and given answers, which `RUN-overfit/samples.jsonl` has too.

    Raises:
        OverfitError: some did not come back within STEPS steps, or samples cannot be used.
        TrainConfigError: there is more than one process, or the stage does not train to answer.
        Owl2Error: see `owl2.train.loop.train`.
    """
    if started() > 1:
        raise TrainConfigError(
            f"--overfit runs in one process, and {started()} were started; start it without torchrun"
        )
    if config.objective != "next_token":
        raise TrainConfigError(
            f"--overfit needs objective next_token; {config.objective} does not learn to answer"
        )
    console = console or Console()
    config = on_this_machine(_stage_of(config, num_samples))
    config.check()
    check_machine(config)
    alone = config.dtype == "float32"
    with (
        start_ranks(local_device(config.device), 1, config.parallel.timeout_s, alone=alone) as ranks,
        open_run_folder(config.run),
    ):
        run, _ = prepare(config, ranks, console)
        asks, trains = run.processor.template, config.data.template
        if asks != trains:
            console.print(
                f"data.template {trains} is not that of the checkpoint, {asks}, which is used to ask"
            )
        dataset = run.dataset
        dataset.augmentations = ["none"] * len(dataset.sources)
        draws = _first_draws(dataset.mixture, num_samples)
        if len(draws) < num_samples:
            console.print(f"there are only {len(draws)} samples; all of them are used")
        dataset.mixture = Chosen(dataset.mixture, draws)
        usable, unusable = [], []
        for draw, (key, item) in zip(draws, map(dataset.__getitem__, range(len(draws))), strict=True):
            if isinstance(item, Encoding):
                usable.append(draw)
            else:
                unusable.append(f"{key}: {item['reason']}")
                console.print(
                    f"cannot be used: {unusable[-1]}", markup=False, highlight=False, soft_wrap=True
                )
        if not usable:
            raise OverfitError(f"none of {len(draws)} samples can be used; the first, {unusable[0]}")
        dataset.mixture = Chosen(dataset.mixture, usable)
        _train(replace(run, config=_stage_of(config, len(usable))), len(unusable))


def _stage_of(config: TrainConfig, num_samples: int) -> TrainConfig:
    """The stage in small: these samples are every step's, and the learning rate falls over the most steps."""
    micro = max(n for n in range(1, min(config.micro_batch_size, num_samples) + 1) if num_samples % n == 0)
    name = config.run.name.removesuffix("-overfit")
    return replace(
        config,
        run=config.run.with_name(f"{name}-overfit"),
        steps=STEPS,
        epochs=None,
        data=replace(config.data, num_workers=0, max_bad_fraction=1.0, validation_share=None),
        optim=replace(config.optim, warmup_steps=5),
        global_batch_size=num_samples,
        micro_batch_size=micro,
        accumulation=num_samples // micro if config.data.pack_tokens is None else 1,
        parallel=replace(config.parallel, tensor=1, replicate=1),
        validation=None,
        ema=None,
    )


def _first_draws(mixture: Mixture, num_samples: int) -> list[Draw]:
    """The first draws of a run that are of different samples."""
    draws: dict[tuple[int, int], Draw] = {}
    most = min(num_samples, mixture.num_samples)
    n = 0
    while len(draws) < most:
        draw = mixture[n]
        draws.setdefault((draw.source, draw.index), draw)
        n += 1
    return list(draws.values())


def _train(run: Run, num_unusable: int) -> None:
    config, console, dataset = run.config, run.console, run.dataset
    questions, notes = _questions(dataset, config.global_batch_size)
    micro_batches = make_loader(config, dataset, 0, run.ranks).micro_batches()
    for step in range(1, STEPS + 1):
        row = take_step(run, micro_batches, step - 1)
        if step % EVERY == 0:
            answers = answer(run.objective, run.processor, questions)
            equal = sum(said.is_expected for said in answers)
            console.print(
                f"step {step:>4}  {console_line(row)}  {equal} of {len(answers)} answers",
                highlight=False,
                soft_wrap=True,
            )
            if equal == len(answers):
                break
    answers = [replace(said, note=said.note or notes.get(said.question.key, "")) for said in answers]
    _write(config.run / SAMPLES, answers, step)
    console.print(_table(answers))
    wrong = sum(not said.is_expected for said in answers)
    if wrong or num_unusable:
        raise OverfitError(_verdict(run, wrong, len(answers), num_unusable, row["loss"]))
    console.print(f"all {len(answers)} answers came back word for word after {step} steps")


def _questions(dataset: SampleDataset, num_samples: int) -> tuple[list[Question], dict[str, str]]:
    """All questions of the samples; and by key, why an answer cannot come back."""
    questions: list[Question] = []
    notes: dict[str, str] = {}
    known: dict[tuple[object, ...], Question] = {}
    for n in range(num_samples):
        _, item = dataset[n]
        assert isinstance(item, Encoding)
        for question in questions_of(dataset, n, is_last=dataset.targets == "last"):
            questions.append(question)
            if max(item.rows or (len(item.ids),)) >= dataset.max_tokens:
                notes[question.key] = f"its sample is cut at data.max_tokens {dataset.max_tokens}"
            seen = known.setdefault(tuple(_asked(question)), question)
            if seen.expected != question.expected:
                for one, other in ((question, seen), (seen, question)):
                    notes[one.key] = f"the same question has another answer in {other.key}"
    return questions, notes


def _asked(question: Question) -> Iterator[object]:
    """What the model is given, for comparison."""
    for message in question.messages:
        for part in [message["content"]] if isinstance(message["content"], str) else message["content"]:
            yield part if isinstance(part, str) else part.get("text") or part["image"].tobytes()


def _write(path: Path, answers: list[Answer], step: int) -> None:
    path.unlink(missing_ok=True)
    for said in answers:
        append_row(path, said.row(step))


def _table(answers: list[Answer]) -> Table:
    table = Table()
    for head in ("sample", "question", "expected", "answer"):
        table.add_column(head, overflow="fold")
    for said in answers:
        question = said.question
        shown = "the same" if said.is_expected else f"{said.text}\n({said.note})" if said.note else said.text
        table.add_row(*map(Text, (question.key, question.text or "(image alone)", question.expected, shown)))
    return table


def _verdict(run: Run, wrong: int, total: int, unusable: int, loss: float) -> str:
    """The message of an OverfitError."""
    told = f"{wrong} of {total} answers did not come back word for word after {STEPS} steps" * bool(wrong)
    lost = f"{unusable} sample(s) cannot be used" * bool(unusable)
    message = "; ".join(part for part in (told, lost) if part)
    if not wrong:
        return f"{message}: repair them (owl2 data inspect shows more of them)"
    if loss > LOW_LOSS:
        return (
            f"{message}. The loss is still {loss:.3f}: raise --optim.lr (now {run.config.optim.lr:g}), or "
            f"look at which parameters the rules train"
        )
    return f"{message}, though the loss is {loss:.3f}: training and answering differ; see the table"

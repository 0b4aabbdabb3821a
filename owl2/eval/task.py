"""A benchmark: where its files are, what is asked, how an answer is read, and what it is worth.

A task is one file in `tasks/`, a class found by the decorator `@task`. It never sees a model: it turns the
official files into items, an item into a conversation, and predictions into scores, all pure functions, so
that scoring again takes seconds and any engine can answer. Names, splits and prompts are the paper's (Table
16); what the authors never published is said in the task's docstring.

Readers: `Task.items` yields an `Item` for each usable record and a `Skipped` for each other one; `Task.load`
is what the rest of the program calls, and the only place that checks ids.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from owl2.data.sample import StoredImage
from owl2.errors import Owl2Error
from owl2.processor.template import Message
from owl2.registry import import_modules, register


class DataMissing(Owl2Error, FileNotFoundError):
    """Files of a benchmark are not there; `paths` are what was looked for, relative to the data folder."""

    def __init__(self, task: str, paths: Sequence[str]):
        super().__init__(f"{task}: missing {', '.join(paths)}")
        self.task = task
        self.paths = tuple(paths)


class EvalDataError(Owl2Error, ValueError):
    """A file of a benchmark that cannot be read as its official format; the message names file and record."""


class UnknownTask(Owl2Error, ValueError):
    """No benchmark of this name; the message has the nearest one."""


@dataclass(frozen=True)
class DataFile:
    """A file or folder a task reads, relative to the data folder."""

    path: str
    source: str
    """Where users get it: a page or an address."""
    licence: str = "see source"
    is_required: bool = True
    """Optional files switch something on (OCR tokens, a second split); without them the task runs."""
    instead_of: str = ""
    """Path of the required file that this one replaces: the same content in another official layout."""


@dataclass(frozen=True)
class Item:
    """One question of a benchmark."""

    id: str
    """Unique within the task and the same in every run: it names the prediction."""
    question: str
    """The benchmark's own words, without any template."""
    images: tuple[StoredImage, ...] = ()
    video: Path | None = None
    """A clip; the runner shows its uniformly sampled frames as images."""
    segment: tuple[float, float] | None = None
    """Begin and end of the shown part of `video`, in seconds."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Letter -> text of multiple choice, in order."""
    references: tuple[str, ...] = ()
    """Right answers, as the metric wants them; empty where the split keeps them secret."""
    category: Mapping[str, str] = field(default_factory=dict)
    """Kind of grouping -> group, for scores by group."""
    cluster: str = ""
    """Items that stand or fall together in the bootstrap (same image, video or rotation); default: the id."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only this task's own prompt and metric use."""


@dataclass(frozen=True)
class Skipped:
    """A record of the official files that no question can be made of."""

    where: str
    """File and record, as in error messages."""
    reason: str


@dataclass(frozen=True)
class Items:
    """The questions of a benchmark, as `Task.load` read them."""

    items: list[Item]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated; fields of `owl2.generate.GenerationConfig`. Never sampled."""

    max_new_tokens: int = 10
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Template:
    """A named, versioned way to ask, kept in every result."""

    source: str
    """Where the wording comes from."""
    messages: Callable[[Item], list[Message]]
    """The conversation up to the question; images are `{"type": "image", "image": Image}`."""
    answer_prefix: str = ""
    """What stands behind `ASSISTANT:` before the model writes. The authors' evaluation scripts end prompts
    with a space, which LLaMA's tokenizer sees."""
    decoding: Decoding | None = None
    """The decoding that belongs to this wording; None: the task's."""


@dataclass(frozen=True)
class Interval:
    """The range of the figure in 95 of 100 samples of the questions."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Score:
    """One figure of a benchmark."""

    metric: str
    value: float
    """In the unit the paper prints."""
    n: int
    values: tuple[float, ...] = ()
    """Each item's share, in the order of the items the score is over, so that their mean times `scale` is
    `value`; empty where the figure is no mean and needs its own resampling."""
    clusters: tuple[str, ...] = ()
    scale: float = 100.0
    is_share: bool = True
    """Whether no item is worth more than 1; not so of CIDEr or a judge's rating."""
    group: str = ""
    """The category a partial score is over; empty for the whole."""
    paper_id: str = ""
    """The row of the paper's tables that this figure is compared with (`owl2/eval/report/paper.json`)."""
    interval: Interval | None = None
    """Set by scoring (`owl2/eval/scoring`); None where nothing varies or there is one cluster."""


@dataclass(frozen=True)
class Answer:
    """A prediction joined to its item by id."""

    item: Item
    output: str
    """What the model wrote, unchanged."""
    parsed: str | None
    """What the task read out of it; None if it could not."""
    grade: Mapping[str, float] | None = None
    """What the task's judge gave, by the names in `owl2/eval/judge/grading.py`; None where none was asked.
    `mmvet`: `score` of 0 to 1; `mmhal`: `rating` of 0 to 6; `video_chatgpt`: `is_right` 0 or 1 and `score` of
    0 to 5."""


class Task(ABC):
    """A benchmark."""

    name: ClassVar[str]
    title: ClassVar[str]
    files: ClassVar[tuple[DataFile, ...]]
    templates: ClassVar[Mapping[str, Template]]
    """The first is the default: the paper's prompt, or what comes nearest to it."""
    decoding: ClassVar[Decoding]
    expected: ClassVar[tuple[int, ...]]
    """Numbers of items that the official files have; a report flags any other."""
    mode: ClassVar[Literal["generate", "rank"]] = "generate"
    """`rank` compares the likelihoods of the choices' texts instead of generating."""
    judge: ClassVar[str | None] = None
    """Name of the judge prompt (`owl2/eval/judge/grading.py`) that grades free answers, if any; `score` reads
    `Answer.grade` and leaves out figures that need grades where there are none."""

    @abstractmethod
    def items(self, data: Path) -> Iterable[Item | Skipped]:
        """Read the official files below `data`: an item or what was skipped for each record, in their order.

        A list of items is fine where a record cannot be broken by itself. Ids need no check here.

        Raises:
            DataMissing: with what was looked for.
            EvalDataError: a file that is not in the official format.
        """

    @abstractmethod
    def parse(self, item: Item, output: str) -> str | None:
        """Read the model's words; None where no answer can be read. Never guesses."""

    @abstractmethod
    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """All figures; the first is the one the paper prints."""

    def load(self, data: Path) -> Items:
        """The questions below `data` with unique ids, and the records that make none.

        Raises:
            DataMissing: with what was looked for.
            EvalDataError: a file that is not in the official format, no question, or fewer questions than
                skipped records.
        """
        items: dict[str, Item] = {}
        skipped = []
        for found in self.items(data):
            if isinstance(found, Skipped):
                skipped.append(found)
            elif found.id in items:
                skipped.append(Skipped(f"{self.name}: {found.id}", "an earlier question has the same id"))
            else:
                items[found.id] = found
        if len(skipped) > len(items):
            first = f"the first, {skipped[0].where}: {skipped[0].reason}"
            raise EvalDataError(
                f"{self.name}: {len(skipped):,} of {len(skipped) + len(items):,} records cannot be used; "
                f"{first}. Are these the official files?"
            )
        if not items:
            raise EvalDataError(f"{self.name}: the files below {data} hold no question of this split")
        return Items(list(items.values()), skipped)

    def decoding_of(self, template: str) -> Decoding:
        """The decoding that belongs to a template of this task."""
        return self.templates[template].decoding or self.decoding

    def find(self, data: Path) -> dict[str, Path]:
        """Path by `DataFile.path` for all files that are there.

        Raises:
            DataMissing: a required one is not.
        """
        found = {file.path: data / file.path for file in self.files if (data / file.path).exists()}
        replaced = {file.instead_of for file in self.files if file.path in found}
        missing = [
            file.path for file in self.files if file.is_required and file.path not in {*found, *replaced}
        ]
        if missing:
            raise DataMissing(self.name, missing)
        return found


TASKS: dict[str, type[Task]] = {}


def task(cls: type[Task]) -> type[Task]:
    """Register a benchmark under its name."""
    register(TASKS, cls, "task")
    return cls


def all_tasks() -> dict[str, type[Task]]:
    """Every benchmark by name, in the order of their files' names."""
    import_modules("owl2.eval.tasks")
    return dict(TASKS)


def find_task(name: str) -> Task:
    """The benchmark of this name.

    Raises:
        UnknownTask: there is none.
    """
    tasks = all_tasks()
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, n=1, cutoff=0)
        raise UnknownTask(f"no benchmark {name!r}; nearest is {near[0]!r} of {', '.join(tasks)}")
    return tasks[name]()

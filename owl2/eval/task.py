"""A benchmark: its files, its prompts, how an answer is read, and its figures.

A task is a class in `tasks/`, registered by the decorator `@task`. It never sees a model: it turns the
official files into items, an item into a conversation, and answers into scores. All of these are pure
functions, so scoring again takes seconds and any engine can answer. Names, splits and prompts are the paper's
(Table 16); a task's docstring says what the authors never published.

A benchmark implements `Task.read`; the rest of the program calls `Task.load`, the only place that checks ids.
"""

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from owl2.data.sample import StoredImage
from owl2.errors import Owl2Error
from owl2.eval.locate import locate
from owl2.processor.template import Message, render
from owl2.registry import Registry

ANSWER_MARK = "ASSISTANT:"
RETIRED_TEMPLATES = {
    "owl2-paper": "mixed two versions of the authors' scripts: choose owl2-2023 (the default, the paper's) "
    "or owl2-2024 (release 2.1)"
}
"""Templates that are no longer asked with; evaluation folders that have them are still scored."""
MAX_UNUSABLE = 0.5
"""Share of records that cannot be used above which the file is taken for another layout or split."""
MAX_WITHOUT_FILE = 0.1
"""Share of questions without their image or clip above which the download is taken for incomplete."""


class DataMissing(Owl2Error, FileNotFoundError):
    """Files of a benchmark are missing; `paths` are the ones looked for, relative to the data folder."""

    def __init__(self, task: str, paths: Sequence[str]):
        super().__init__(f"{task}: missing {', '.join(paths)}")
        self.task = task
        self.paths = tuple(paths)


class EvalDataError(Owl2Error, ValueError):
    """A file of a benchmark that is not in its official format; the message names file and record."""


@dataclass(frozen=True)
class Skipped:
    """A record that cannot be used. It is counted and reported, and the rest of the benchmark runs."""

    where: str
    """File and record."""
    reason: str
    lacks_file: bool = False
    """Whether the record is fine and its image or clip is missing."""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class RecordError(EvalDataError):
    """One record that cannot be used; readers turn it into the `Skipped` it carries."""

    def __init__(self, skipped: Skipped):
        super().__init__(str(skipped))
        self.skipped = skipped


class UnknownTask(Owl2Error, ValueError):
    """No benchmark has this name; the message has the nearest one."""


class UnknownTemplate(Owl2Error, ValueError):
    """The benchmark has no template of this name; the message has the nearest one."""


@dataclass(frozen=True)
class DataFile:
    """A file or folder a task reads, relative to the data folder."""

    path: str
    source: str
    """Where to get it: a page or an address."""
    licence: str = "see source"
    is_required: bool = True
    """A task runs without its optional files; they add something (OCR tokens, a second split)."""
    instead_of: str = ""
    """Path of the required file that this one replaces: the same content in another official layout."""

    def locate(self, data: Path) -> Path | None:
        """The file or folder below `data`, under the spellings that `owl2.eval.locate` accepts."""
        return locate(data, self.path)


@dataclass(frozen=True)
class Item:
    """One question of a benchmark."""

    id: str
    """Unique within the task and the same in every run: it identifies the prediction."""
    question: str
    """The benchmark's own words, without any template."""
    images: tuple[StoredImage, ...] = ()
    video: Path | None = None
    """A clip; the runner shows its uniformly sampled frames as images."""
    segment: tuple[float, float] | None = None
    """Begin and end of the part of `video` that is shown, in seconds."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Letter -> text of multiple choice, in order."""
    references: tuple[str, ...] = ()
    """Right answers, as the metric needs them; empty where the split keeps them secret."""
    category: Mapping[str, str] = field(default_factory=dict)
    """Kind of grouping -> group, for scores by group."""
    cluster: str = ""
    """Items of one cluster (same image, video or question) are resampled together; default: the id."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that only this task's own prompt and metric use."""


@dataclass(frozen=True)
class Items:
    """The questions of a benchmark, as `Task.load` read them."""

    items: list[Item]
    skipped: list[Skipped]

    @property
    def num_records(self) -> int:
        """Records in the files, skipped ones included: what `Task.expected` counts."""
        return len(self.items) + len(self.skipped)


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated: fields of `owl2.generate.GenerationConfig`."""

    max_new_tokens: int = 10
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    """Matters with several beams only."""
    more: tuple[tuple[str, Any], ...] = ()
    """Name and value of other fields, such as those of sampling. No benchmark has any."""

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded with answers; `more` if there is any."""
        found = dataclasses.asdict(self)
        return found if found.pop("more") == () else found | dict(self.more)


@dataclass(frozen=True)
class Template:
    """A named, versioned prompt, with the decoding and the reading of answers that belong to it."""

    source: str
    """Where the wording comes from."""
    messages: Callable[[Item], list[Message]]
    """The conversation up to the question; images are `{"type": "image", "image": Image}`."""
    answer_prefix: str = ""
    """Text behind `ASSISTANT:` that the model continues. The authors' scripts of February 2024 have a blank
    there, which becomes a token of its own that training never shows (see `ending_note`)."""
    decoding: Decoding | None = None
    """None: the task's."""
    parse: Callable[[Item, str], str | None] | None = None
    """How this version read an answer; None: `Task.parse`."""
    choices: Callable[[Item], Mapping[str, str]] | None = None
    """`rank` mode: letter -> text whose likelihood is compared; None: the item's choices."""


def ending_note(name: str, template: Template, conversation: str = "mplug_owl2") -> str:
    """One line on a prompt that ends otherwise than prompts do in training; empty if it ends alike.

    In training, the blank behind `ASSISTANT:` belongs to the first token of the answer. A prompt that ends in
    it has a token there that training never shows.

    Args:
        name: the template's name.
        conversation: the processor's template (`owl2/processor/template.py`).
    """
    exchange = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    chunks = render(exchange, conversation)
    before = next(chunks[i - 1] for i, chunk in enumerate(chunks) if chunk.is_target)
    trained = before.text.rpartition(ANSWER_MARK)[2]
    asked = template.answer_prefix[len(template.answer_prefix.rstrip()) :]
    if asked == trained:
        return ""
    return (
        f"template {name}: prompts end in {ANSWER_MARK + template.answer_prefix!r}, training has "
        f"{ANSWER_MARK + trained!r}; a model that never saw this ending may answer worse"
    )


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
    """Each item's share, in the order of the items that the score is over: their mean times `scale` is
    `value`. Empty where the figure is no mean and needs its own resampling."""
    clusters: tuple[str, ...] = ()
    scale: float = 100.0
    is_share: bool = True
    """Whether no item is worth more than 1; not so of CIDEr or a judge's rating."""
    group: str = ""
    """The category that a partial score is over; empty for the whole."""
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
    """The answer that the task reads in it; None if it cannot be read."""
    grade: Mapping[str, float] | None = None
    """The judge's grade, by the names in `owl2/eval/judge/grading.py`; None if there is none. `mmvet`:
    `score` of 0 to 1; `mmhal`: `rating` of 0 to 6; `video_chatgpt`: `is_right` 0 or 1, `score` of 0 to 5."""
    prompt: str = ""
    """All that was asked; empty in folders of earlier versions."""


class Task(ABC):
    """A benchmark."""

    name: ClassVar[str]
    title: ClassVar[str]
    files: ClassVar[tuple[DataFile, ...]]
    templates: ClassVar[Mapping[str, Template]]
    """The first is the default: the paper's prompt, or the one nearest to it."""
    old_names: ClassVar[Mapping[str, str]] = {"owl2-paper": "owl2-2024"}
    """Name of a template in old evaluation folders -> the template that has that prompt today."""
    decoding: ClassVar[Decoding]
    """Decoding of the templates that do not say it."""
    expected: ClassVar[tuple[int, ...]]
    """Numbers of records in the official files, unusable ones included; a report flags any other number."""
    defects: ClassVar[tuple[str, ...]] = ()
    """Known defects of the official files, and what becomes of them."""
    mode: ClassVar[Literal["generate", "rank"]] = "generate"
    """`rank` compares the likelihoods of the choices' texts instead of generating."""
    shows_all: ClassVar[bool] = False
    """Whether a report shows right answers too, not only wrong ones."""
    judge: ClassVar[str | None] = None
    """Name of the judge prompt (`owl2/eval/judge/grading.py`) that grades free answers, if any; `score` reads
    `Answer.grade` and leaves out figures that need grades where there are none."""

    @abstractmethod
    def read(self, data: Path) -> Iterable[Item | Skipped]:
        """The questions in the official files below `data`, in order; a `Skipped` for each unusable record.

        Raises:
            DataMissing: with the files looked for.
            EvalDataError: a file that cannot be read at all.
        """

    @abstractmethod
    def parse(self, item: Item, output: str) -> str | None:
        """The answer in the model's words; None where none can be read. Never a guess."""

    @abstractmethod
    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """All figures; the first is the one the paper prints."""

    def load(self, data: Path) -> Items:
        """The questions below `data` with unique ids, and the records that cannot be used.

        Raises:
            DataMissing: with the files looked for.
            EvalDataError: a file that cannot be read, no questions, or too many unusable records.
        """
        items: dict[str, Item] = {}
        skipped: list[Skipped] = []
        for found in self.read(data):
            if isinstance(found, Skipped):
                skipped.append(found)
            elif found.id in items:
                skipped.append(Skipped(f"{self.name}: item {found.id}", "an earlier record has this id"))
            else:
                items[found.id] = found
        self._check_usable(len(items), skipped)
        return Items(list(items.values()), skipped)

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where the class comes from, for `find_task`; empty for ours."""
        return TASKS.origin(self.name) if self.name in TASKS.all() else {}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a report says about how this task is scored."""
        return ()

    def items(self, data: Path) -> list[Item]:
        """The questions below `data`; see `load`."""
        return self.load(data).items

    def find(self, data: Path) -> dict[str, Path]:
        """Path by `DataFile.path` for all files that are there.

        Raises:
            DataMissing: a required one is not.
        """
        located = {file.path: file.locate(data) for file in self.files}
        found = {path: place for path, place in located.items() if place is not None}
        replaced = {file.instead_of for file in self.files if file.path in found}
        missing = [
            file.path for file in self.files if file.is_required and file.path not in {*found, *replaced}
        ]
        if missing:
            raise DataMissing(self.name, missing)
        return found

    def template(self, name: str) -> Template:
        """The template of this name, also by the name that an old evaluation folder has for it.

        Raises:
            UnknownTemplate: there is none.
        """
        known = self.old_names.get(name, name)
        if known not in self.templates:
            near = difflib.get_close_matches(name, self.templates, n=1, cutoff=0)[0]
            raise UnknownTemplate(
                f"{self.name} has no template {name!r}; nearest is {near!r} of {', '.join(self.templates)}"
            )
        return self.templates[known]

    def decoding_of(self, template: str) -> Decoding:
        """The decoding that belongs to a template."""
        return self.template(template).decoding or self.decoding

    def parse_answer(self, template: str, item: Item, output: str) -> str | None:
        """The answer to a prompt of this template, read as its version read it."""
        return (self.template(template).parse or self.parse)(item, output)

    def _check_usable(self, num_items: int, skipped: Sequence[Skipped]) -> None:
        total = num_items + len(skipped)
        if not total:
            raise EvalDataError(f"{self.name}: the files hold no question of this split")
        closed = [record for record in skipped if record.lacks_file]
        if len(closed) > MAX_WITHOUT_FILE * total:
            raise EvalDataError(
                f"{self.name}: {len(closed):,} of {total:,} questions lack their image or clip, the first is "
                f"{closed[0]}; unpack the whole download there"
            )
        if len(skipped) > MAX_UNUSABLE * total:
            raise EvalDataError(
                f"{self.name}: {len(skipped):,} of {total:,} records cannot be used, the first is "
                f"{skipped[0]}; is the file of another split or layout?"
            )


TASKS: Registry[Task] = Registry("task", "owl2.eval.tasks", "owl2.tasks")
task = TASKS.add
"""Register a benchmark under its name; the decorator of its class."""


def all_tasks() -> dict[str, type[Task]]:
    """Every benchmark by name, in the order of the modules' names; then those from outside."""
    return TASKS.all()


def find_task(name: str, origin: Mapping[str, str] | None = None, user: str = "") -> Task:
    """The benchmark of this name.

    Args:
        origin: where its class comes from, as `user`, a folder of answers, has recorded it.

    Raises:
        UnknownTask: there is none.
        RegistryError: the package or file of a recorded origin is gone.
    """
    TASKS.find_again(name, origin or {}, user)
    tasks = all_tasks()
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, n=1, cutoff=0)
        raise UnknownTask(
            f"no benchmark {name!r}; nearest is {near[0]!r} of {', '.join(tasks)}; one of your own needs "
            f"--include FILE.py"
        )
    return tasks[name]()

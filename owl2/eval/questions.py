"""Questions of one's own: a file of rows as a benchmark, with a metric by name.

A row has a question, images or a video or neither, and what is right: references, or choices and an answer.
It may also be a row of training (`conversations`, `messages`), whose last answer is the reference. Rows are
read like those of any benchmark: a bad one costs itself. What is asked has a fingerprint, so that answers to
other questions are never taken for these, and a copy of the file stays in the run's folder.
"""

import dataclasses
import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from owl2.data.readers.rows import ROLES, conversation, stored_media
from owl2.data.readers.storage import is_url
from owl2.data.recipes.wording import LETTER, SHORT
from owl2.data.sample import Clip, DataError, StoredImage
from owl2.errors import Owl2Error, Owl2Warning
from owl2.eval.formats.frames import NUM_FRAMES, Frame
from owl2.eval.formats.records import Record, read_records, usable
from owl2.eval.hashing import short_hash
from owl2.eval.metrics.averages import mean, mean_by_group
from owl2.eval.metrics.named import METRICS, find_metric, metric_for
from owl2.eval.task import Answer, Decoding, EvalDataError, Item, Score, Skipped, Task, Template, all_tasks
from owl2.eval.tasks.prompts import options
from owl2.files import write_file
from owl2.processor.template import Message

FOLDER = "questions"
"""In the run's folder: copies of the files."""
ANSWER = ("references", "reference", "answers", *ROLES["answer"])
GROUP = ("group", "category")
TEXTS = ("exact", "f1", "cider")
"""Metrics that follow from how long references are; a file with several of them has F1 in their place."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def as_written(item: Item) -> list[Message]:
    """The row's conversation; below its question, choices and the sentence that asks for a letter."""
    return _ending(item, f"\n{options(item.choices)}\n{LETTER}" if item.choices else "")


def in_short(item: Item) -> list[Message]:
    """The same; without choices with the sentence that asks for a single word or phrase."""
    return as_written(item) if item.choices else _ending(item, f"\n{SHORT}")


def _ending(item: Item, text: str) -> list[Message]:
    """The conversation with this text behind its question."""
    if not text:
        return list(item.extra["messages"])
    *before, last = item.extra["messages"]
    *parts, end = _parts(last)
    if end["type"] != "text":
        parts, end = [*parts, end], {"type": "text", "text": ""}
    return [*before, {**last, "content": [*parts, {**end, "text": end["text"] + text}]}]


class Questions(Task):
    """A file of questions; `own_questions` makes the class of one."""

    files = ()
    templates: ClassVar[dict[str, Template]] = {
        "as-written": Template("the rows as they are", as_written),
        "short": Template("the rows, asked for a single word or phrase", in_short),
    }
    decoding = Decoding(max_new_tokens=128)
    shows_all = True
    file: ClassVar[Path]
    metric: ClassVar[str]
    """"" for the one that suits each row."""
    rows: ClassVar[Sequence[Item | Skipped]]
    root: ClassVar[Path | None] = None
    """Where paths of images begin; None for the folder of the file."""

    def read(self, data: Path) -> Sequence[Item | Skipped]:
        return self.rows

    def parse(self, item: Item, output: str) -> str | None:
        name = item.extra["metric"]
        return find_metric(name).parse(item, output) if name else output.strip() or None

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """A figure for each metric, of several shares one over all first; then the first one by group."""
        values: dict[str, tuple[list[Answer], list[float]]] = {}
        for name in dict.fromkeys(answer.item.extra["metric"] for answer in answers):
            some = [answer for answer in answers if answer.item.extra["metric"] == name]
            if name:
                values[name] = some, find_metric(name).values(some)
        if len(values) > 1 and all(find_metric(name).is_share for name in values):
            worth = {
                a.item.id: v for some, shares in values.values() for a, v in zip(some, shares, strict=True)
            }
            known = [answer for answer in answers if answer.item.id in worth]
            values = {"": (known, [worth[answer.item.id] for answer in known]), **values}
        scores = []
        for number, (name, (some, shares)) in enumerate(values.items()):
            chosen = find_metric(name) if name else None
            title, is_share = (chosen.title, chosen.is_share) if chosen else ("right", True)
            scores.append(mean(title, some, shares, is_share=is_share))
            if number == 0 and len({answer.item.category.get("group") for answer in some}) > 1:
                scores += mean_by_group("group", title, some, shares, is_share=is_share)
        return scores

    @property
    def origin(self) -> dict[str, Any]:
        asked = [
            [item.id, _texts(as_written(item)), item.extra["media"], dict(item.choices)]
            for item in self.rows
            if isinstance(item, Item)
        ]
        fingerprint = short_hash(json.dumps(asked))
        known = METRICS.origin(self.metric) if self.metric else {}
        root = str(self.root.absolute()) if self.root else ""
        found = {"questions": str(self.file.absolute()), "fingerprint": fingerprint, "metric": self.metric}
        return found | ({"metric_origin": known} if known else {}) | ({"image_root": root} if root else {})

    @property
    def remarks(self) -> tuple[str, ...]:
        names = [row.extra["metric"] for row in self.rows if isinstance(row, Item)]
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        shown = ", ".join(
            f"{name or 'none, without references'} ({count:,})" for name, count in counts.items()
        )
        why = "chosen with --metric" if self.metric else "by the form of each row; --metric chooses another"
        return (f"metric: {shown}; {why}",)

    def _check_usable(self, num_items: int, skipped: Sequence[Skipped]) -> None:
        if not num_items:
            first = f"; the first: {skipped[0]}" if skipped else ""
            raise EvalDataError(f"{self.file}: none of {len(skipped):,} rows is a question{first}")


def own_questions(
    file: Path, metric: str = "", *, root: Path | None = None, like: Path | None = None
) -> Task:
    """A file of questions as a task.

    Args:
        file: JSON lines or a JSON array.
        metric: for all rows; "" for the one that suits each.
        root: folder of the paths of images; default: the file's.
        like: the file that this is a copy of, whose images may be gone.

    Raises:
        EvalDataError: it cannot be read, or no row is a question.
        UnknownMetric: there is no such metric.
    """
    rows = list(read_questions(file, metric, root=root, must_exist=like is None))
    used = {row.extra["metric"] for row in rows if isinstance(row, Item)}
    if not metric and len(used.intersection(TEXTS)) > 1:
        rows = [
            _with_metric(row, "f1") if isinstance(row, Item) and row.extra["metric"] in TEXTS else row
            for row in rows
        ]
    name = re.sub(r"\W+", "_", (like or file).name.split(".")[0]).strip("_") or FOLDER
    members = {
        "name": f"{name}_{FOLDER}" if name in all_tasks() else name,
        "title": (like or file).name,
        "expected": (len(rows),),
        "file": like or file,
        "metric": metric,
        "rows": rows,
        "root": root,
    }
    made: Task = type("OwnQuestions", (Questions,), members)()
    made.load(file.parent)
    return made


def keep_questions(task: Task, out: Path) -> None:
    """Leave a copy of the file of a task of questions in the run's folder."""
    if isinstance(task, Questions):
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        write_file(_copy(out, task.origin), task.file.read_bytes())


def questions_again(folder: Path, origin: Mapping[str, Any]) -> Task:
    """The questions that a run has answers to: the file itself, or its copy if that has changed or moved.

    Raises:
        EvalDataError: neither can be read.
        RegistryError: the metric came from a package or file that is gone.
    """
    METRICS.find_again(origin["metric"], origin.get("metric_origin", {}), str(folder))
    file, copy = Path(origin["questions"]), _copy(folder, origin)
    root = Path(origin["image_root"]) if "image_root" in origin else None
    try:
        task = own_questions(file, origin["metric"], root=root)
        if task.origin["fingerprint"] == origin["fingerprint"]:
            return task
        why = "asks something else by now"
    except (Owl2Error, OSError) as error:
        why = f"cannot be used ({error})"
    if not copy.is_file():
        raise EvalDataError(
            f"{folder} has answers to the questions of {file}, which {why}; {copy} is missing too"
        )
    warnings.warn(f"{file} {why}: its copy in {folder} is scored", Owl2Warning, stacklevel=2)
    return own_questions(copy, origin["metric"], root=root or file.parent, like=file)


def read_questions(
    file: Path, metric: str = "", *, root: Path | None = None, must_exist: bool = True
) -> Iterator[Item | Skipped]:
    """The rows of a file as questions, and those that are none.

    Args:
        metric: see `own_questions`; a row that it cannot score is none.
        root: folder of the paths of images; default: the file's.
        must_exist: whether a row needs its images.

    Raises:
        EvalDataError: neither JSON lines nor a JSON array.
        UnknownMetric: there is no such metric.
    """
    if metric:
        find_metric(metric)
    if not file.is_file():
        raise EvalDataError(
            f"{file} {'is a folder' if file.is_dir() else 'does not exist'}; give a file of rows"
        )
    make = partial(_item, root=(root or file.parent).absolute(), metric=metric, must_exist=must_exist)
    yield from usable(read_records(file), make)


def _item(record: Record, root: Path, metric: str, must_exist: bool) -> Item:
    media: dict[str, int] = {}
    """Name -> size in bytes; 0 of what is at a URL."""
    paths: dict[str, Path] = {}

    def stored(given: Any) -> StoredImage:
        found = stored_media(given, root, f"row {record.number + 1}")
        path = given.get("path") or given.get("url") if isinstance(given, dict) else given
        if found.name != path:
            try:  # it is in the row itself
                media[found.name] = len(found.read())
            except ValueError as error:
                record.fail(f"an image or clip in the row is not base64: {error}")
        elif is_url(path):
            media[path] = 0
        else:
            there = _find(root, path)
            if must_exist and there is None:
                record.fail(f"{path} is not in {root}", lacks_file=True)
            paths[path] = there or root / path
            media[path] = there.stat().st_size if there else 0
        return found

    messages, said = _conversation(record, stored, paths)
    question = _texts(messages)[-1][1]
    if not question:
        record.fail("the question is blank")
    choices = _choices(record)
    right = _field(record, ANSWER)
    references = _references(record, said if right is None else right, choices)
    tolerance = record.get("tolerance", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or tolerance < 0:
        record.fail(f"tolerance is {tolerance!r:.60}, expected a number of at least 0")
    group, key = _field(record, GROUP), next((name for name in ROLES["key"] if name in record.fields), "")
    item = Item(
        id=record.id(key) if key else str(record.number + 1),
        question=question,
        images=tuple(part["image"] for m in messages for part in _parts(m) if part["type"] == "image"),
        choices=choices,
        references=references,
        category={} if group is None else {"group": str(group)},
        cluster=" ".join(media),
        extra={"messages": messages, "media": media, "tolerance": tolerance},
    )
    chosen = metric or metric_for(item)
    if references and (lacking := find_metric(chosen).needs(item)):
        record.fail(f"metric {chosen} needs {lacking}")
    return _with_metric(item, chosen if references else "")


def _with_metric(item: Item, metric: str) -> Item:
    return dataclasses.replace(item, extra={**item.extra, "metric": metric})


def _conversation(
    record: Record, stored: Callable[[Any], StoredImage], paths: Mapping[str, Path]
) -> tuple[list[Message], str | None]:
    """The turns up to the last question, clips as their frames, and the answer that follows, if any."""
    turns = _field(record, ROLES["conversation"])
    if turns is None:
        name = next((name for name in ROLES["question"] if record.get(name)), "question")
        question, more = record.text(name), _field(record, ROLES["input"])
        _field(record, ROLES["question"])  # only one of them
        question += "" if more is None else f"\n{_text(record, 'input', more)}"
        history = [said for pair in _several(record.get("history")) for said in _several(pair)]
        said = enumerate([*history, question.strip()])
        turns = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in said]
    if not isinstance(turns, list) or not turns:
        record.fail(f"the conversation is {turns!r:.60}, expected a list of turns")
    images, videos, system = (_field(record, ROLES[role]) for role in ("image", "video", "system"))
    media = {"images": _several(images), "videos": _several(videos)}
    try:
        messages: list[Any] = conversation("", "", turns, stored, system=system, **media).messages
    except DataError as error:
        record.fail(str(error).replace(" of sample ", "").replace(": sample ", "").lstrip(": "))
    segment = _segment(record)
    for message in messages:
        if message["role"] == "user":
            parts = [_frames(part, segment, paths) for part in _parts(message)]
            message["content"] = [shown for frames in parts for shown in frames]
    if messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], _texts(messages)[-1][1]


def _frames(
    part: dict[str, Any], segment: tuple[float, float] | None, paths: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """A part; for a clip its frames as images."""
    if part["type"] != "video":
        return [part]
    name, read = part["video"].name, part["video"].source
    clip = Clip(name, paths.get(name) or cache(read), segment)
    return [{"type": "image", "image": Frame(f"{name}#{n}", read, clip, n)} for n in range(NUM_FRAMES)]


def _choices(record: Record) -> dict[str, str]:
    """Letter -> text of a list, or of an object that has the letters itself."""
    given = _field(record, ("choices", "options"))
    if given is None:
        return {}
    if isinstance(given, list):
        given = dict(zip(LETTERS, given, strict=False)) if len(given) <= len(LETTERS) else {}
    if not isinstance(given, dict) or len(given) < 2:
        record.fail(
            f"choices are {record.get('choices')!r:.60}, expected a list of 2 to {len(LETTERS)} texts"
        )
    letters = {str(letter).strip().upper(): _text(record, "a choice", text) for letter, text in given.items()}
    if len(letters) != len(given) or not all(len(letter) == 1 and letter in LETTERS for letter in letters):
        record.fail(f"choices are called {', '.join(map(str, given))}, expected letters")
    return letters


def _references(record: Record, right: Any, choices: Mapping[str, str]) -> tuple[str, ...]:
    """What is right, as text; of choices the letters."""
    found = [one.get("answer") if isinstance(one, dict) else one for one in _several(right)]
    if not choices:
        return tuple(_text(record, "a reference", one) for one in found)
    return tuple(_letter(record, one, choices) for one in found)


def _letter(record: Record, right: Any, choices: Mapping[str, str]) -> str:
    """The choice that an answer means: by its letter, its text, or its place from 0."""
    text = _text(record, "the answer", right)
    meant = {
        letter for letter, choice in choices.items() if choice.strip().casefold() == text.strip().casefold()
    }
    if (letter := text.strip().strip("().").upper()) in choices:
        meant.add(letter)
    if isinstance(right, int) and not isinstance(right, bool) and 0 <= right < len(choices):
        meant.add([*choices][right])
    if len(meant) != 1:
        several = (
            f"may mean {' or '.join(sorted(meant))}" if meant else "is no letter, text or place of a choice"
        )
        record.fail(f"the answer {right!r:.60} {several}")
    return meant.pop()


def _segment(record: Record) -> tuple[float, float] | None:
    given = record.get("segment")
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2 or not all(type(t) in (int, float) for t in given):
        record.fail(f"segment is {given!r:.60}, expected begin and end in seconds")
    return float(given[0]), float(given[1])


def _field(record: Record, names: Sequence[str]) -> Any:
    """The value of the one field of these that the row has; None if it has none, or an empty one."""
    there = {name: record.fields[name] for name in names if record.fields.get(name) not in (None, "", [])}
    if len(there) > 1:
        record.fail(f"both {' and '.join(there)}")
    return next(iter(there.values()), None)


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _text(record: Record, what: str, value: Any) -> str:
    """A text, or a number or truth value as one."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value) if isinstance(value, int) else f"{value:.12g}"
    if not isinstance(value, str) or not value.strip():
        record.fail(f"{what} is {value!r:.60}, expected text")
    return Record(record.where, {what: value}).text(what).strip()


def _find(root: Path, path: str) -> Path | None:
    """The file of a path as `read_media` finds it: Windows and macOS write some paths in another way."""
    forms = [unicodedata.normalize(form, path.replace("\\", "/")) for form in ("NFC", "NFD")]
    with suppress(OSError):  # a name that is too long
        return next((root / form for form in (path, *forms) if (root / form).is_file()), None)
    return None


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Role and text of each message."""
    return [(m["role"], "".join(part.get("text", "") for part in _parts(m)).strip()) for m in messages]


def _copy(folder: Path, origin: Mapping[str, Any]) -> Path:
    return folder / FOLDER / Path(origin["questions"]).name

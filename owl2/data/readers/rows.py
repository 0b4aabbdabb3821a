"""Rows of JSON files, tables and shards as samples: which column is what, and what becomes of a row.

A row is a conversation or a question with its answer, with or without images and clips, or an image with its
caption (`FORMS`). Corpora are alike in that and differ in what they call their columns: `ROLES` has the names
that are known, `columns` of a source gives others. A row or table that has none of them, or two for one role,
is an error that shows its columns; so is a column that looks like media or a system prompt and has no known
name, for without it the model would train blind. Nothing is guessed.
"""

import difflib
import random
import re
import reprlib
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

from owl2.data.readers.storage import Location, read_media
from owl2.data.sample import Clip, DataError, Sample, StoredImage, printable

ROLES = {
    "conversation": ("conversations", "conversation", "messages", "texts"),
    "system": ("system", "system_prompt"),
    "image": ("image", "images", "jpg", "jpeg", "png", "webp"),
    "video": ("video", "videos"),
    "question": ("question", "query", "instruction", "prompt"),
    "input": ("input", "context"),
    "history": ("history",),
    "answer": ("answer", "response", "output", "completion"),
    "caption": ("caption", "captions", "text", "txt"),
    "key": ("id", "question_id", "__key__"),
}
"""What a column may be called, by its role; of keys the first counts. `input` is the second part of a
question, and `history` has the pairs before it, both as in Alpaca's files."""
FORMS = {
    "conversation": ("conversation",),
    "question": ("question", "answer"),
    "caption": ("image", "caption"),
}
"""The roles that a row must have, by what it is; with a conversation it is one, whatever else it has."""
_MORE = {
    "conversation": ("system", "image", "video"),
    "question": ("system", "image", "video", "input", "history"),
    "caption": (),
}
"""The roles that it may have too."""

EXCHANGES = (("user", "assistant"), ("human", "assistant"))
"""Fields of a turn that is a question and its answer, as in the_cauldron and in ms-swift's files."""
TURN_KEYS = (
    {"from", "value"},
    {"role", "content"},
    {"role", "value"},
    {"from", "content"},
    *map(set[str], EXCHANGES),
)
"""What a turn has: who speaks and what is said, or both sides of an exchange."""

IMAGE_MARKS = ("<|image|>", "<image>")
"""The released code's mark and LLaVA's; both mean the next image of the sample."""
VIDEO_MARKS = ("<|video|>", "<video>")
"""The next clip, in a row that has any: elsewhere these are words of HTML. In a row of clips alone image
marks mean them too, as in LLaVA-Video's files."""

UNKNOWN = "unknown row format"
"""The kind of fault of a row in which something is missing or has another type than expected."""
NO_OBJECT = "not a JSON object"
"""The kind of fault of a row that is no JSON, or no object."""
UNREAD = "media is not read"
"""The kind of fault of a row with media or a system prompt under a name that is not known."""
FOREIGN = "not for supervised training"
"""The kind of fault of a row that is meant for another way of training, or calls tools."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
_PARTS = {
    f"{medium}{end}": medium for medium in ("image", "video") for end in ("", "_url", "_path", "_binary")
}
"""Types of parts that are media."""
_CONTENT = ("value", "content")
"""Fields that a part may have its text or medium in, if none is called as its type."""
_TOOLS = ("tool", "tools", "function", "function_call", "tool_call", "observation", "ipython")
_WEIGHTS = ("loss_weight", "weight", "loss")
"""Fields of a turn that say whether it is learned from."""
_BOM = "\ufeff"

_MEDIA_WORDS = {
    "image": "image images img imgs picture pictures pic pics photo photos jpg jpeg png webp gif bmp pixels "
    "frame frames screenshot screenshots thumbnail",
    "video": "video videos clip clips mp4 webm avi movie",
    "audio": "audio audios sound sounds speech wav mp3 flac",
}
"""Words in the names of columns that hold media."""
_ABOUT_WORDS = """alt answer answers aspect author bbox bboxes box boxes caption captions category class count
credit dataset date description dim dims domain duration embedding embeddings end error features format fps
has hash height id ids index info is key label labels language length licence license md5 meta metadata mode
num number objects origin prompt prompts quality question questions ratio rating ratings resolution score
scores sha256 shape similarity size sizes source start status tag tags text time title token tokens type
vector width"""
"""Words in the names of columns that tell something about media: `image_id`, `video_duration`."""
_SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "video": (".mp4", ".webm", ".avi", ".mkv", ".mov"),
    "audio": (".wav", ".mp3", ".flac", ".ogg"),
}
LOOKS = {
    "image": "an image",
    "video": "a video",
    "audio": "audio",
    "system": "a system prompt",
    "conversation": "a conversation",
}
MAX_SHOWN = 30
"""Columns that an error shows."""
_PLAIN = re.compile("number|u?int|half|float|double|decimal|bool|date|time|duration|null")
"""How the names of types begin that hold neither media nor text, or nothing at all."""


class Column(NamedTuple):
    """A column of a table, or one value of a row of JSON."""

    name: str
    type: str
    """As it is shown in errors."""
    fits: frozenset[str]
    """Roles that a value of this type can have."""
    media: str = ""
    """`image`, `video` or `audio` if its content is that, whatever its name."""


@dataclass(frozen=True)
class Form:
    """How a row is read."""

    kind: str
    """One of `FORMS`."""
    columns: Mapping[str, str]
    """The column of each role that it has."""
    unread: Mapping[str, str]
    """Columns that look like the same media as one with a role: a row may not have these alone."""


Names = tuple[tuple[str, str], ...]
"""Role and column, for the columns that a source names itself."""


def names_of(columns: Mapping[str, str] | None, where: str) -> Names:
    """Return the columns that a source names itself by their roles.

    Args:
        columns: a role, or any known name of one, to the column's name.
        where: names the source in errors.

    Raises:
        DataError: no such role, or one twice.
    """
    role_of = {name: role for role, names in ROLES.items() for name in (role, *names)}
    roles: dict[str, str] = {}
    for name, column in (columns or {}).items():
        if name not in role_of:
            near = difflib.get_close_matches(name, role_of, 1, 0)[0]
            raise DataError(f"{where}: columns has {name!r}; the nearest is {near!r} of {', '.join(ROLES)}")
        if roles.setdefault(role_of[name], column) != column:
            raise DataError(f"{where}: columns names two columns for {role_of[name]}")
    return tuple(sorted(roles.items()))


def form_of(columns: Sequence[Column], where: str, names: Names = ()) -> Form:
    """Return how a table, or one row of JSON, is read.

    Args:
        columns: of a table all; of a row those that are not empty.
        where: names the table or row in errors.
        names: see `names_of`.

    Raises:
        DataError: it is in none of the forms, has two columns for one role, media or a system prompt that
            would not be read, or is for another way of training.
    """
    form, faults, blind, foreign = _form(tuple(columns), names)
    if foreign:
        raise DataError(f"{where} has {foreign}", FOREIGN)
    if faults:
        raise DataError(f"{where} has {', '.join(faults)}. {_expectation(columns)}", UNKNOWN)
    if blind:
        raise DataError(f"{where} has {', '.join(blind)}", UNREAD)
    return form


@lru_cache(1024)
def _form(columns: tuple[Column, ...], names: Names) -> tuple[Form, list[str], list[str], str]:
    """Return the form, what it lacks, what it would leave unread, and what else the row is for."""
    by_name, own = {column.name: column for column in columns}, dict(names)
    found = {}
    for role in ROLES:
        known = [own[role]] if role in own else [name for name in ROLES[role] if name not in own.values()]
        there = [name for name in known if name in by_name]
        found[role] = [name for name in there if role in by_name[name].fits] or there
    foreign = _foreign(by_name, own)
    meant = [form for form in FORMS if ({*FORMS[form]} - {"image"}) & own.keys()] or [*FORMS]
    whole = [form for form in meant if all(found[role] for role in FORMS[form])]
    faults = []
    if len(whole) > 1 and whole[0] != "conversation":
        faults = ["both a question with its answer and a caption: `columns` says which is meant"]
    chosen = whole[0] if whole else max(meant, key=lambda form: _nearness(form, found))
    used = [*FORMS[chosen], *_MORE[chosen]]
    for role in FORMS[chosen]:
        if not found[role]:
            faults.append(f"no column {own[role]} for its {role}" if role in own else f"no {role}")
    faults += [f"both {' and '.join(found[role])} for its {role}" for role in used if len(found[role]) > 1]
    roles = {role: found[role][0] for role in (*used, "key") if found[role]}
    faults += [
        f"{name} of type {by_name[name].type}, which is no {role}"
        for role, name in roles.items()
        if role not in by_name[name].fits
    ]
    if faults or foreign:
        return Form(chosen, {}, {}), faults, [], foreign
    others = {column.name: _looks_like(column) for column in columns if column.name not in roles.values()}
    is_meant = len(meant) < len(FORMS)  # then a conversation is left out on purpose
    unread = {
        name: look for name, look in others.items() if look and not (is_meant and look == "conversation")
    }
    blind = [
        f"{name}, which looks like {LOOKS[look]} and is not read: {_advice(name, look)}"
        for name, look in unread.items()
        if look not in roles or _is_numbered(name)
    ]
    return Form(chosen, roles, unread), [], blind, ""


def _nearness(form: str, found: Mapping[str, Sequence[str]]) -> tuple[int, bool]:
    """How near a row is to a form; an image alone says nothing."""
    return sum(bool(found[role]) for role in FORMS[form] if role != "image"), form == "caption"


def _foreign(columns: Mapping[str, Column], own: Mapping[str, str]) -> str:
    """Say that rows are for another way of training than from answers, or empty."""
    rest = [name for name in columns if name not in own.values()]
    pair = [name for name in columns if name.partition("_")[0] in ("chosen", "rejected")]
    if pair and not {*pair} & {*own.values()}:
        chosen = [f"say columns: {{answer: {name}}}" for name in pair if name.startswith("chosen")]
        return (
            f"{' and '.join(pair)}: answers to compare, for DPO; owl2 learns from one answer a question. "
            f"Keep conversations with the good answers alone{''.join(f', or {advice}' for advice in chosen)}"
        )
    if label := [name for name in rest if name in ("label", "kto_tag") and columns[name].type == "bool"]:
        return (
            f"{label[0]} (true or false): answers that are good or bad, as KTO needs; owl2 would learn from "
            f"both. Keep the good rows, and drop the column"
        )
    if "tools" in rest:
        return "tools: calls of tools are not read; remove these rows, or the column"
    return ""


def _unread(fields: Mapping[str, Any]) -> str:
    """Return the name of media that a turn, or a text in it, has in a field that is not read."""
    return next((name for name, value in fields.items() if value and _is_media_name(name)), "")


@lru_cache(1024)
def _is_media_name(name: str) -> bool:
    return _looks_like(Column(name, "", frozenset())) in _MEDIA_WORDS


def _looks_like(column: Column) -> str:
    """Return what a column without a role seems to be, a name in LOOKS, or nothing."""
    if "conversation" in column.fits:
        return "conversation"
    words = {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+|[0-9]+", column.name)}
    named = next((kind for kind, known in _MEDIA_WORDS.items() if words & {*known.split()}), "")
    if column.media:
        return named or column.media
    if _PLAIN.match(column.type) or words & {*_ABOUT_WORDS.split()}:
        return ""
    return named or ("system" if "system" in words else "")


def _is_numbered(name: str) -> bool:
    """Whether a column is one of several, as `image_2`."""
    stem = name.rstrip("0123456789").rstrip("_-")
    return name[-1:].isdigit() and stem in (*ROLES["image"], *ROLES["video"])


def _advice(name: str, look: str) -> str:
    if look not in ROLES:
        return "remove it, or its rows"
    return f"rename it to {ROLES[look][0]}, or remove it, or say columns: {{{look}: {name}}}"


def _expectation(columns: Sequence[Column]) -> str:
    """Say what there is, and what to do about it."""
    known = [name for names in ROLES.values() for name in names]
    near = {c.name: difflib.get_close_matches(c.name, known, 1, 0.75) for c in columns[:MAX_SHOWN]}
    meant = [
        f"{name} may be meant as {names[0]}" for name, names in near.items() if names and name not in known
    ]
    looks = {c.name: _looks_like(c) for c in columns[:MAX_SHOWN] if c.name not in known}
    meant += [
        f"{name} looks like {LOOKS[look]}: say columns: {{{look}: {name}}}"
        for name, look in looks.items()
        if look in ROLES
    ]
    shown = ", ".join(f"{column.name} ({column.type})" for column in columns[:MAX_SHOWN]) or "all empty"
    shown += f" and {len(columns) - MAX_SHOWN:,} more" if len(columns) > MAX_SHOWN else ""
    names = {role: " or ".join(known) for role, known in ROLES.items()}
    wanted = (
        f"Expected is {names['conversation']}, a list of {{from, value}} or {{role, content}}; or one of "
        f"{names['question']}, and one of {names['answer']}; or one of {names['image']}, with bytes or "
        f"paths, and one of {names['caption']}; rename or drop columns, or give their names as `columns`"
    )
    return "; ".join([f"Its columns are {shown}. {wanted}", *meant])


class _Mark(NamedTuple):
    """The place of an image or clip in a turn."""

    is_video: bool
    media: Any = None
    """What the part itself holds; None if it is the next of the row's."""


def conversation(
    source: str,
    key: str,
    turns: Any,
    stored: Callable[[Any], StoredImage],
    *,
    images: Sequence[Any] = (),
    videos: Sequence[Any] = (),
    system: Any = None,
) -> Sample:
    """Turn a conversation and its media into a sample.

    Marks in the text say where images and clips are. Without any mark they all come before the text of the
    first question, images first. A system prompt is a first message of the role `system`.

    Args:
        turns: dictionaries as in `TURN_KEYS`; what is said is text or a list of parts.
        stored: makes a file of an element of `images` or `videos`.

    Raises:
        DataError: wrong roles, no text, or marks and images or clips that differ in number.
    """
    sample = f"{source}: sample {key}"
    prompt, said = _system_and_turns(source, key, turns, is_mark=_pattern(has_videos=bool(videos)))
    if system is not None:
        own = _text(system, f"{sample}: its system prompt")
        if prompt and prompt != own:
            raise DataError(f"{sample} has two system prompts that differ", "two system prompts")
        prompt = own
    marks = [piece for _, pieces in said for piece in pieces if isinstance(piece, _Mark)]
    next_ones = [mark for mark in marks if mark.media is None]
    num_videos = sum(mark.is_video or bool(videos and not images) for mark in next_ones)
    num_images = len(next_ones) - num_videos
    if marks and (num_images != len(images) or num_videos != len(videos)):
        message = f"{sample} has {num_images} image mark(s) and {len(images)} image(s)"
        message += f", {num_videos} video mark(s) and {len(videos)} video(s)" if videos or num_videos else ""
        raise DataError(message, "image marks and images differ")
    left_images, left_videos = deque(images), deque(videos)

    def part(piece: str | _Mark) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"type": "text", "text": piece}
        is_video, media = piece
        if media is None:
            is_video = is_video or not left_images
            media = (left_videos if is_video else left_images).popleft()
        file = stored(media)
        if is_video:
            return {"type": "video", "video": Clip(file.name, file.read)}
        return {"type": "image", "image": file}

    opening = [] if marks else [_Mark(False)] * len(images) + [_Mark(True)] * len(videos)
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt}] if prompt else []
    for role, pieces in said:
        parts = [part(piece) for piece in (*opening, *pieces) if piece]
        messages.append({"role": role, "content": parts})
        opening = []
    return Sample(source, key, messages)


def sample_of(
    source: str, key: str, cells: Mapping[str, Any], stored: Callable[[Any], StoredImage]
) -> Sample:
    """Turn a row into a sample.

    Args:
        cells: what the row has, by role; of `image` and `video` one, or a list of them.
        stored: makes a file of one of these.

    Raises:
        DataError: it cannot be used.
    """
    key = printable(key)
    images, videos = (_several(cells.get(role)) for role in ("image", "video"))
    if cells.keys() >= {"question", "answer"}:
        cells = {**cells, "conversation": _turns_of(cells)}
    if "conversation" in cells:
        turns, system = cells["conversation"], cells.get("system")
        return conversation(source, key, turns, stored, images=images, videos=videos, system=system)
    if len(images) != 1:
        kind = "several images with one caption" if images else "image is missing"
        raise DataError(f"{source}: sample {key} has a caption and {len(images)} images", kind)
    return captioned(source, key, cells["caption"], stored(images[0]))


def _turns_of(cells: Mapping[str, Any]) -> list[Any]:
    """Return a question and its answer, which are texts or lists of turns, as a conversation."""
    question, answer = cells["question"], cells["answer"]
    if cells.get("input"):
        question = f"{question}\n{cells['input']}"
    pairs = [*cells.get("history", []), (question, answer)]
    sides = zip(("user", "assistant") * len(pairs), (side for pair in pairs for side in pair), strict=False)
    turns = [said if isinstance(said, list) else [{"role": role, "content": said}] for role, said in sides]
    return [turn for side in turns for turn in side]


def _several(media: Any) -> list[Any]:
    return media if isinstance(media, list) else [] if media is None else [media]


def captioned(source: str, key: str, caption: Any, image: StoredImage) -> Sample:
    """Turn an image and its caption into a sample: the image alone is the question, the caption the answer.

    Of several captions it is a random one, which depends on the key alone, as in the recipe of COCO.

    Raises:
        DataError: the caption is blank or no text.
    """
    if isinstance(caption, list) and caption:
        caption = random.Random(f"{source}:{key}").choice(caption)
    text = _text(caption, f"{source}: the caption of {key}").strip().removeprefix(_BOM).strip()
    if not text:
        raise DataError(f"{source}: the caption of {key} is blank", "caption is blank")
    question = {"role": "user", "content": [{"type": "image", "image": image}]}
    return Sample(source, key, [question, {"role": "assistant", "content": text}])


def stored_media(media: Any, root: Location, place: str) -> StoredImage:
    """Return the file that an image or clip of a row is.

    Args:
        media: a path, URL, data URI or bytes, or a dictionary with one of them as `bytes`, `path` or `url`.
        root: where paths begin.
        place: of the row, for errors.

    Raises:
        DataError: it is none of these.
    """
    fields = media if isinstance(media, dict) else {"bytes" if isinstance(media, bytes) else "path": media}
    data, path = fields.get("bytes"), fields.get("path") or fields.get("url") or ""
    if isinstance(path, str) and path.startswith("data:"):
        data, path = path.partition(",")[2], ""
    if data and isinstance(data, str | bytes):
        read = partial(bytes, data) if isinstance(data, bytes) else partial(b64decode, data)
        return StoredImage(f"{place} ({path})" if path else place, read)
    path = checked_path(path, f"an image or clip of {place}")
    return StoredImage(path, partial(read_media, root, path))


def checked_path(path: Any, what: str) -> str:
    """Return the path or URL of an image or clip.

    Raises:
        DataError: it is none, or one that no file can have.
    """
    if not isinstance(path, str) or not path:
        raise DataError(f"{what} is missing", "image is missing")
    if "\0" in path or any("\ud800" <= character <= "\udfff" for character in path):
        raise DataError(f"{what} has the path {_short(path)}, which no file can have", "path is not a path")
    return path


def media_of_name(path: str) -> str:
    """Return `image`, `video` or `audio` if a text is the path of one by its suffix."""
    end = path[-8:].lower()
    return next((kind for kind, suffixes in _SUFFIXES.items() if end.endswith(suffixes)), "")


def decoded(data: bytes, what: str) -> str:
    """Return the text that UTF-8 bytes are, without a byte order mark.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8: {error}", "text is not UTF-8") from error


def _system_and_turns(
    source: str, key: str, turns: Any, is_mark: re.Pattern[str]
) -> tuple[str, list[tuple[str, list[str | _Mark]]]]:
    """Return the text of a system turn, if any, and role and pieces of the others."""
    prompt = ""
    said: list[tuple[str, list[str | _Mark]]] = []
    for number, turn in enumerate(_single(turns), start=1):
        where = f"{source}: turn {number} of sample {key}"
        if not isinstance(turn, Mapping):
            raise DataError(f"{where} is {_short(turn)}, expected {{from, value}}", UNKNOWN)
        if len(turn) > 2 and (unread := _unread(turn)):
            raise DataError(f"{where} has {unread} of its own, which is not read", UNREAD)
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if role in _TOOLS or turn.get("tool_calls"):
            raise DataError(f"{where} is from {_short(role)}: calls of tools are not read", FOREIGN)
        pieces = [*_pieces(content, where, is_mark)]
        if number == 1 and role == "system":
            prompt = "".join(_text(piece, where) for piece in pieces)
            if len(turns) == 1:
                raise DataError(
                    f"{where} is from 'system', and no question follows", "turns do not alternate"
                )
            continue
        expected = ("user", "assistant")[len(said) % 2]
        if not isinstance(role, str) or _SPEAKERS.get(role) != expected:
            name = {"user": "human", "assistant": "gpt"}[expected] if "from" in turn else expected
            raise DataError(f"{where} is from {_short(role)}, expected {name!r}", "turns do not alternate")
        for name in _WEIGHTS:
            if expected == "assistant" and turn.get(name, 1) not in (1, None):
                raise DataError(f"{where} has {name} {_short(turn[name])}, and only 1 is read", FOREIGN)
        said.append((expected, pieces))
    return prompt, said


def _single(turns: Any) -> Iterator[Any]:
    """Yield turns one by one; those with both sides of an exchange are two."""
    for turn in turns:
        pairs = [pair for pair in EXCHANGES if isinstance(turn, Mapping) and turn.keys() >= {*pair}]
        if pairs:
            rest = {name: value for name, value in turn.items() if name not in pairs[0]}
            yield from ({**rest, "role": role, "content": turn[role]} for role in pairs[0])
        else:
            yield turn


def _pieces(content: Any, where: str, is_mark: re.Pattern[str]) -> Iterator[str | _Mark]:
    """Yield text and marks of a turn's content, a text or a list of parts."""
    if not isinstance(content, list):
        yield from _split(_text(content, where), is_mark)
        return
    for part in content:
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
        medium = _PARTS.get(kind, "") if isinstance(kind, str) else ""
        if kind == "text":
            if unread := _unread(part):
                raise DataError(f"{where} has a text with {unread}, which is not read", UNREAD)
            said = [part[name] for name in ("text", *_CONTENT) if part.get(name) is not None]
            yield from _split(_text(said[0] if said else None, where), is_mark)
        elif medium:
            names = (kind, medium, "path", "url", *_CONTENT)
            yield _Mark(medium == "video", next((part[name] for name in names if part.get(name)), None))
        else:
            raise DataError(
                f"{where} has a part {_short(part)}; expected text, image or video as its type", UNKNOWN
            )


def _split(text: str, is_mark: re.Pattern[str]) -> Iterator[str | _Mark]:
    begin = 0
    for mark in is_mark.finditer(text):
        yield text[begin : mark.start()]
        yield _Mark(mark.group() in VIDEO_MARKS)
        begin = mark.end()
    yield text[begin:]


@lru_cache(2)
def _pattern(*, has_videos: bool) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, IMAGE_MARKS + (VIDEO_MARKS if has_videos else ()))))


def _text(value: Any, what: str) -> str:
    """Return a text that can be tokenised, without a byte order mark."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {_short(value)}, expected text", UNKNOWN)
    try:
        value.encode()  # fails on half a surrogate pair, which JSON can spell
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not UTF-8: {error}", "text is not UTF-8") from error
    return value.removeprefix(_BOM)


def _short(value: Any) -> str:
    """Return a value as errors show it, cut if it is long or deep: `repr` fails on the deepest ones."""
    return reprlib.repr(value)

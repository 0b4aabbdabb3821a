"""Writes the demo's world to a folder, in the formats of real corpora; restartable, and always the same.

    pretrain/000000.tar ...      WebDataset shards: key.jpg, key.txt (caption), key.json (the scene)
    instruct/images, train.jsonl LLaVA conversations, one per image
    instruct/text.jsonl          text-only conversations
    instruct/easyvqa.jsonl       easy-VQA in the same format (images in instruct/easyvqa)
    lm/train.jsonl               conversations without images for the decoder's pre-training
    val/                         pretrain/, instruct.jsonl + images/, text.jsonl, lm.jsonl, questions.jsonl
    test/                        questions.jsonl, more.jsonl + images/; the same test as official files for
                                 `owl2 eval run --data`: vqav2/, pope/, coco/ (their images), mmbench/
    world.json                   version, sizes and seed, written last: the world is complete

The work is a list of parts (`writers.py`, `test_sets.py`), which all cores share; each part's file is written
whole or not at all, and a second call writes what is missing. What each split may show is documented in
`scenes.py` and `vocabulary.py`.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from owl2.demo.assets import WORLD_ASSETS, fetch_all
from owl2.demo.world.drawings import Drawings
from owl2.demo.world.test_sets import (
    COCO_IMAGES,
    MAIN_KINDS,
    OTHER_KINDS,
    write_official,
    write_pope,
    write_questions,
)
from owl2.demo.world.writers import (
    Part,
    World,
    write,
    write_easyvqa,
    write_instruct,
    write_pretrain,
    write_talk,
    write_text,
)
from owl2.errors import Owl2Error

SHARD_SIZE = 500
VERSION = 4
"""Of the world's files and their places."""
PARTS = ".parts"

WRITERS: dict[str, Callable[[World, Part], None]] = {
    "pretrain": write_pretrain,
    "instruct": write_instruct,
    "text": write_text,
    "talk": write_talk,
    "questions": write_questions,
    "pope": write_pope,
}


class WorldError(Owl2Error, ValueError):
    """The folder holds another world; the message says how it differs."""


@dataclass(frozen=True)
class WorldSizes:
    """How much of everything."""

    pretrain_images: int = 22_000
    instruct_images: int = 10_000
    val_images: int = 300
    test_questions: int = 300
    """Of each of the five main kinds; the other four kinds get a third each."""
    lm_conversations: int = 40_000
    text_conversations: int = 3_000
    easyvqa_images: int = 1_000
    image_size: int = 112


SMOKE = WorldSizes(
    pretrain_images=300,
    instruct_images=200,
    val_images=40,
    test_questions=20,
    lm_conversations=600,
    text_conversations=100,
    easyvqa_images=20,
    image_size=56,
)


def write_world(
    out: Path,
    sizes: WorldSizes,
    *,
    seed: int = 0,
    processes: int | None = None,
    assets: dict[str, Path] | None = None,
) -> None:
    """Write the world of these sizes and this seed to `out`, or what is still missing of it.

    Args:
        processes: number of cores to use; default: all.
        assets: package -> its unpacked folder; fetched by default.

    Raises:
        WorldError: `out` holds a world of another version, other sizes or another seed.
    """
    plan = {"version": VERSION, "seed": seed, **asdict(sizes)}
    if _is_complete(out, plan):
        return
    write(out / PARTS / "plan.json", json.dumps(plan).encode())
    assets = assets or fetch_all(WORLD_ASSETS)
    todo = [part for part in parts(sizes) if not (out / part.path).exists()]
    write_one = partial(_write_part, out, tuple(assets.items()), sizes.image_size, seed)
    _run(write_one, todo, processes or os.cpu_count() or 1)
    _finish(out, assets, sizes)
    write(out / "world.json", json.dumps(plan, indent=2).encode())
    shutil.rmtree(out / PARTS)


def parts(sizes: WorldSizes) -> list[Part]:
    """All parts of a world of these sizes, the long ones first."""
    third = max(1, sizes.test_questions // 3)
    all_parts = [
        *_slices("pretrain", sizes.pretrain_images, lambda i: f"pretrain/{i:06d}.tar"),
        *_slices(
            "instruct", sizes.instruct_images, lambda i: f"{PARTS}/instruct-{i:06d}.jsonl", "instruct/images"
        ),
        Part("pretrain", "val", 0, sizes.val_images, "val/pretrain/000000.tar"),
        Part("instruct", "val", 0, sizes.val_images, "val/instruct.jsonl", "val/images"),
        Part("text", "train", 0, sizes.text_conversations, "instruct/text.jsonl"),
        Part("text", "val", 0, max(1, sizes.val_images // 3), "val/text.jsonl"),
        *_slices(
            "talk", sizes.lm_conversations, lambda i: f"{PARTS}/talk-{i:06d}.jsonl", slice_size=8 * SHARD_SIZE
        ),
        Part("talk", "val", 0, sizes.val_images, "val/lm.jsonl"),
    ]
    for kind in MAIN_KINDS:
        size = max(1, sizes.val_images // 3)
        all_parts.append(_test("val", kind, size))
        all_parts.append(_test("test", kind, sizes.test_questions))
    all_parts += [_test("test", kind, third) for kind in OTHER_KINDS]
    all_parts.append(Part("pope", "test", 0, third, f"{PARTS}/pope.jsonl", f"test/{COCO_IMAGES}"))
    return all_parts


def _test(split: str, kind: str, count: int) -> Part:
    path = f"{PARTS}/{split}-{kind}.jsonl"
    return Part("questions", "val" if split == "val" else "test", 0, count, path, f"{split}/images", kind)


def _slices(
    kind: str, total: int, path: Callable[[int], str], images: str = "", slice_size: int = SHARD_SIZE
) -> Iterator[Part]:
    for index, first in enumerate(range(0, total, slice_size)):
        yield Part(kind, "train", first, min(slice_size, total - first), path(index), images)


def _is_complete(out: Path, plan: dict[str, int]) -> bool:
    """Whether the world is complete; an unfinished one has its plan in `.parts/plan.json`."""
    for path in (out / "world.json", out / PARTS / "plan.json"):
        if not path.exists():
            continue
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise WorldError(f"{path}: not JSON; remove {out} and run the same command again") from None
        if found != plan:
            different = sorted(key for key in plan.keys() | found.keys() if plan.get(key) != found.get(key))
            told = ", ".join(f"{key} is {found.get(key)}, wanted {plan.get(key)}" for key in different)
            raise WorldError(f"{out}: holds another world ({told}); remove the folder or choose another one")
        return path.name == "world.json"
    return False


@cache
def _read_drawings(assets: tuple[tuple[str, Path], ...]) -> Drawings:
    """The drawings, which each process reads once."""
    return Drawings(dict(assets))


def _write_part(
    out: Path, assets: tuple[tuple[str, Path], ...], image_size: int, seed: int, part: Part
) -> Part:
    WRITERS[part.kind](World(out, _read_drawings(assets), image_size, seed), part)
    return part


def _run(write_one: Callable[[Part], Part], todo: list[Part], processes: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("writing the world", total=sum(part.count for part in todo))
        if processes == 1:
            for part in todo:
                progress.advance(bar, write_one(part).count)
            return
        # spawn, because the caller may hold threads (torch) that a fork would copy half
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            for done in as_completed([pool.submit(write_one, part) for part in todo]):
                progress.advance(bar, done.result().count)


def _finish(out: Path, assets: dict[str, Path], sizes: WorldSizes) -> None:
    """Join the slices of each file and write what is made from finished parts."""
    pieces = out / PARTS
    _join(out / "instruct" / "train.jsonl", sorted(pieces.glob("instruct-*.jsonl")))
    _join(out / "lm" / "train.jsonl", sorted(pieces.glob("talk-*.jsonl")))
    for split in ("val", "test"):
        _join(out / split / "questions.jsonl", [pieces / f"{split}-{kind}.jsonl" for kind in MAIN_KINDS])
    _join(out / "test" / "more.jsonl", [pieces / f"test-{kind}.jsonl" for kind in OTHER_KINDS])
    write_official(out / "test", pieces / "pope.jsonl")
    write_easyvqa(out / "instruct", assets["easy-vqa"], "train", sizes.easyvqa_images)


def _join(path: Path, pieces: list[Path]) -> None:
    write(path, b"".join(piece.read_bytes() for piece in pieces))

"""Writes the demo's world to a folder, in the formats of real corpora, restartable and the same every time.

    pretrain/000000.tar ...      WebDataset shards: key.jpg, key.txt (caption), key.json (the scene)
    instruct/images, train.jsonl LLaVA conversations, all pairs of an image merged
    instruct/text.jsonl          text-only conversations
    instruct/easyvqa.jsonl       easy-VQA in the same format (images in instruct/easyvqa)
    lm/train.jsonl               talk without images for the decoder's pre-training
    val/                         pretrain/, instruct.jsonl + images/, text.jsonl, lm.jsonl, questions.jsonl
    test/                        questions.jsonl, more.jsonl + images/, vqav2/, pope/, mmbench/
    world.json                   sizes and seed, written last: the world is complete

The work is a list of parts (`writers.py`). A part's file appears by one rename, parts run on all cores, and a
second call writes what is missing. What may be seen in which split is documented in `scenes.py` and
`world.py`.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from owl2.demo.assets import WORLD_ASSETS, fetch_all
from owl2.demo.world.drawings import Drawings
from owl2.demo.world.test_sets import MAIN_KINDS, OTHER_KINDS, write_official, write_pope, write_questions
from owl2.demo.world.writers import (
    Part,
    Studio,
    write_atomically,
    write_easyvqa,
    write_instruct,
    write_pretrain,
    write_talk,
    write_text,
)

SHARD_SIZE = 500
VERSION = 3
PARTS = ".parts"

WRITERS: dict[str, Callable[[Studio, Part], None]] = {
    "pretrain": write_pretrain,
    "instruct": write_instruct,
    "text": write_text,
    "talk": write_talk,
    "questions": write_questions,
    "pope": write_pope,
}


@dataclass(frozen=True)
class WorldSizes:
    """How much of everything. `test_questions` counts a kind (of five); the other four kinds get a third
    each."""

    pretrain_images: int = 22_000
    instruct_images: int = 10_000
    val_images: int = 300
    test_questions: int = 300
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
    """Writes the world of these sizes and this seed to `out`, or what is still missing of it.

    `processes` is the number of cores used, by default all. `assets` maps packages to their unpacked folders;
    by default they are fetched. Raises ValueError if `out` holds a world of other sizes or another seed.
    """
    plan = {"version": VERSION, "seed": seed, **asdict(sizes)}
    if _claim(out, plan):
        return
    assets = assets or fetch_all(WORLD_ASSETS)
    todo = [part for part in parts(sizes) if not (out / part.path).exists()]
    _run(out, todo, assets, sizes.image_size, seed, processes or os.cpu_count() or 1)
    _finish(out, assets, sizes)
    write_atomically(out / "world.json", lambda scratch: scratch.write_text(json.dumps(plan, indent=2)))
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
    all_parts.append(Part("pope", "test", 0, third, f"{PARTS}/pope.jsonl", "test/images"))
    return all_parts


def _test(split: str, kind: str, count: int) -> Part:
    assert split in ("val", "test")
    path = f"{PARTS}/{split}-{kind}.jsonl"
    return Part("questions", "val" if split == "val" else "test", 0, count, path, f"{split}/images", kind)


def _slices(
    kind: str, total: int, path: Callable[[int], str], images: str = "", slice_size: int = SHARD_SIZE
) -> Iterator[Part]:
    for index, first in enumerate(range(0, total, slice_size)):
        yield Part(kind, "train", first, min(slice_size, total - first), path(index), images)


def _claim(out: Path, plan: dict[str, int]) -> bool:
    """Whether the world is complete already; an unfinished one keeps its plan in `.parts/plan.json`."""
    for path in (out / "world.json", out / PARTS / "plan.json"):
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != plan:
            different = sorted(key for key in plan.keys() | found.keys() if plan.get(key) != found.get(key))
            told = ", ".join(f"{key} is {found.get(key)}, wanted {plan.get(key)}" for key in different)
            raise ValueError(f"{out}: holds another world ({told}); remove the folder or choose another one")
        return path.name == "world.json"
    write_atomically(out / PARTS / "plan.json", lambda scratch: scratch.write_text(json.dumps(plan)))
    return False


_studio: Studio | None = None  # of a worker process: drawings are read once a process


def _open_studio(out: Path, assets: dict[str, Path], image_size: int, seed: int) -> None:
    global _studio
    _studio = Studio(out, Drawings(assets), image_size, seed)


def _write_part(part: Part) -> Part:
    assert _studio is not None
    WRITERS[part.kind](_studio, part)
    return part


def _run(
    out: Path, todo: list[Part], assets: dict[str, Path], image_size: int, seed: int, processes: int
) -> None:
    studio = (out, assets, image_size, seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("writing the world", total=sum(part.count for part in todo))
        if processes == 1:
            _open_studio(*studio)
            for part in todo:
                progress.advance(bar, _write_part(part).count)
            return
        # spawn, because the caller may hold threads (torch) that a fork would copy half
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, _open_studio, studio) as pool:
            for done in as_completed([pool.submit(_write_part, part) for part in todo]):
                progress.advance(bar, done.result().count)


def _finish(out: Path, assets: dict[str, Path], sizes: WorldSizes) -> None:
    """Joins the slices of each file and writes what is made from finished parts."""
    pieces = out / PARTS
    _join(out / "instruct" / "train.jsonl", sorted(pieces.glob("instruct-*.jsonl")))
    _join(out / "lm" / "train.jsonl", sorted(pieces.glob("talk-*.jsonl")))
    for split in ("val", "test"):
        _join(out / split / "questions.jsonl", [pieces / f"{split}-{kind}.jsonl" for kind in MAIN_KINDS])
    _join(out / "test" / "more.jsonl", [pieces / f"test-{kind}.jsonl" for kind in OTHER_KINDS])
    write_official(out / "test", pieces / "pope.jsonl")
    write_easyvqa(out / "instruct", assets["easy-vqa"], "train", sizes.easyvqa_images)


def _join(path: Path, pieces: list[Path]) -> None:
    text = "".join(piece.read_text(encoding="utf-8") for piece in pieces)
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

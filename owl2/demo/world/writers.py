"""Writes one part of the demo's world: a shard of captioned images, a slice of instructions, of talk, of
questions.

A part is a range of scene numbers and one file that appears, by one rename, when all of it is on disk; its
images are named by number, so a part that was interrupted is simply written again. Formats are those of
real corpora: WebDataset shards for captions, LLaVA conversations (all pairs of an image merged, as the
paper's appendix B.1) for instructions.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from owl2.demo.world.captions import caption
from owl2.demo.world.drawings import Drawings
from owl2.demo.world.questions import qas
from owl2.demo.world.scenes import scene
from owl2.demo.world.text import Turn, instructions, talk
from owl2.demo.world.world import Split

IMAGE_MARK = "<|image|>"
# Scene numbers of instruction images start here, so that they are not the captioned images again.
INSTRUCT_OFFSET = 100_000_000
SEED_STRIDE = 1_000_000_000


@dataclass(frozen=True)
class Part:
    """`count` samples from number `first` on; `path`, relative to the world's folder, exists when it is
    finished. `images` is the folder of its images, relative too; `topic` is what a part of test questions
    asks."""

    kind: str
    split: Split
    first: int
    count: int
    path: str
    images: str = ""
    topic: str = ""


@dataclass(frozen=True)
class Studio:
    """What every part is written with: the world's folder, the drawings, the image size and the seed."""

    out: Path
    drawings: Drawings
    image_size: int
    seed: int

    def number(self, index: int) -> int:
        """The scene number of a sample of this world."""
        return self.seed * SEED_STRIDE + index


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `path` and renames the result to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, atomically."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomically(path, lambda scratch: scratch.write_text(lines, encoding="utf-8"))


def jpeg(image: Image.Image) -> bytes:
    """JPEG of quality 90 without chroma subsampling: thin coloured lines must keep their colour."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def conversation(identifier: str, turns: Iterable[Turn], image: str | None = None) -> dict[str, Any]:
    """A LLaVA record; the first human turn carries the image mark if there is an image."""
    said: list[dict[str, str]] = []
    for question, answer in turns:
        mark = IMAGE_MARK if image and not said else ""
        said += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    record: dict[str, Any] = {"id": identifier}
    if image:
        record["image"] = image
    return {**record, "conversations": said}


def write_pretrain(studio: Studio, part: Part) -> None:
    """A WebDataset shard: `key.jpg`, `key.txt` (caption), `key.json` (the scene)."""

    def write(scratch: Path) -> None:
        with tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(part.first, part.first + part.count):
                number = studio.number(index)
                image, seen = studio.drawings.draw(scene(number, part.split), studio.image_size)
                text = caption(seen, Random(f"owl2 caption {part.split} {number}"))
                members = {
                    "jpg": jpeg(image),
                    "txt": text.encode(),
                    "json": json.dumps(asdict(seen)).encode(),
                }
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{index:07d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))

    write_atomically(studio.out / part.path, write)


def write_instruct(studio: Studio, part: Part) -> None:
    """Images and their conversations of 5 to 7 question-answer pairs of mixed kinds."""
    folder = studio.out / part.images
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(part.first, part.first + part.count):
        number = studio.number(index + INSTRUCT_OFFSET)
        image, seen = studio.drawings.draw(scene(number, part.split), studio.image_size)
        rng = Random(f"owl2 questions {part.split} {number}")
        turns = [(qa.question, qa.answer) for qa in qas(seen, rng, rng.randint(5, 7))]
        name = f"{index:07d}.jpg"
        (folder / name).write_bytes(jpeg(image))
        records.append(conversation(f"{part.split}-{index:07d}", turns, f"images/{name}"))
    write_jsonl(studio.out / part.path, records)


def write_text(studio: Studio, part: Part) -> None:
    """Text-only instruction conversations."""
    numbers = range(part.first, part.first + part.count)
    rows = ((index, instructions(studio.number(index), part.split)) for index in numbers)
    write_jsonl(studio.out / part.path, (conversation(f"text-{index:07d}", turns) for index, turns in rows))


def write_talk(studio: Studio, part: Part) -> None:
    """Conversations for the decoder's pre-training."""
    numbers = range(part.first, part.first + part.count)
    rows = ((index, talk(studio.number(index), part.split)) for index in numbers)
    write_jsonl(studio.out / part.path, (conversation(f"talk-{index:07d}", turns) for index, turns in rows))


def write_easyvqa(out: Path, wheel: Path, split: str, num_images: int) -> int:
    """easy-VQA in the LLaVA format: the first `num_images` images, all pairs of an image merged.

    Returns how many images there are. Raises ValueError if the package has no questions for one of them.
    """
    source = wheel / "easy_vqa" / "data" / split
    pairs: dict[int, list[Turn]] = {}
    for question, answer, image in json.loads((source / "questions.json").read_text(encoding="utf-8")):
        pairs.setdefault(image, []).append((question[0].upper() + question[1:], answer))
    chosen = sorted(pairs)[:num_images]
    folder = out / "easyvqa"
    folder.mkdir(parents=True, exist_ok=True)
    for image in chosen:
        shutil.copyfile(source / "images" / f"{image}.png", folder / f"{image}.png")
    records = (conversation(f"easyvqa-{split}-{i}", pairs[i], f"easyvqa/{i}.png") for i in chosen)
    write_jsonl(out / "easyvqa.jsonl", records)
    return len(chosen)

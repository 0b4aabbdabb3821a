"""Writers of the world's training files: a shard of captioned images, a slice of conversations.

A part is a range of scene numbers and one file, which is written last and whole; its images are named by
number, so an interrupted part is simply written again. The formats are those of real corpora: WebDataset
shards for captions, LLaVA conversations (all questions of an image in one conversation, as in the paper's
appendix B.1) for instructions.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
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
from owl2.demo.world.vocabulary import Split
from owl2.files import write_file

IMAGE_MARK = "<|image|>"
INSTRUCT_OFFSET = 100_000_000
"""Scene numbers of instruction images start here, so no image is in both corpora."""
SEED_STRIDE = 1_000_000_000


@dataclass(frozen=True)
class Part:
    """A file of the world that is written by itself: `count` samples from number `first` on."""

    kind: str
    """The writer's name in `corpus.WRITERS`."""
    split: Split
    first: int
    count: int
    path: str
    """The file, relative to the world's folder; it exists when the part is finished."""
    images: str = ""
    """Folder of its images, relative to the world's folder."""
    topic: str = ""
    """Kind of question, for test questions."""


@dataclass(frozen=True)
class World:
    """A world that is being written."""

    out: Path
    drawings: Drawings
    image_size: int
    seed: int

    def number(self, index: int) -> int:
        """The scene number of a sample of this world."""
        return self.seed * SEED_STRIDE + index


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, with the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


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


def write_pretrain(world: World, part: Part) -> None:
    """A WebDataset shard: `key.jpg`, `key.txt` (caption), `key.json` (the scene)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(part.first, part.first + part.count):
            number = world.number(index)
            image, seen = world.drawings.render(scene(number, part.split), world.image_size)
            text = caption(seen, Random(f"owl2 caption {part.split} {number}"))
            members = {"jpg": jpeg(image), "txt": text.encode(), "json": json.dumps(asdict(seen)).encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{index:07d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    write(world.out / part.path, stream.getvalue())


def write_instruct(world: World, part: Part) -> None:
    """Images and their conversations of 5 to 7 question-answer pairs of mixed kinds."""
    folder = world.out / part.images
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(part.first, part.first + part.count):
        number = world.number(index + INSTRUCT_OFFSET)
        image, seen = world.drawings.render(scene(number, part.split), world.image_size)
        rng = Random(f"owl2 questions {part.split} {number}")
        turns = [(qa.question, qa.answer) for qa in qas(seen, rng, rng.randint(5, 7))]
        name = f"{index:07d}.jpg"
        (folder / name).write_bytes(jpeg(image))
        records.append(conversation(f"{part.split}-{index:07d}", turns, f"images/{name}"))
    write_jsonl(world.out / part.path, records)


def write_text(world: World, part: Part) -> None:
    """Text-only instruction conversations."""
    numbers = range(part.first, part.first + part.count)
    rows = ((index, instructions(world.number(index), part.split)) for index in numbers)
    write_jsonl(world.out / part.path, (conversation(f"text-{index:07d}", turns) for index, turns in rows))


def write_talk(world: World, part: Part) -> None:
    """Conversations for the decoder's pre-training."""
    numbers = range(part.first, part.first + part.count)
    rows = ((index, talk(world.number(index), part.split)) for index in numbers)
    write_jsonl(world.out / part.path, (conversation(f"talk-{index:07d}", turns) for index, turns in rows))


def write_easyvqa(out: Path, wheel: Path, split: str, num_images: int) -> None:
    """easy-VQA in the LLaVA format: the first `num_images` images, all pairs of an image merged."""
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

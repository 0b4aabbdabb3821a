"""Corpora in small: twenty images in tar shards with captions, and conversations of uneven length."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from owl2.data.order import StepSampler
from tests.processor.small import WORDS

NUM_IMAGES = 20


def jpeg(number: int) -> bytes:
    """Return one of the images: a coloured one of its own size with a square in another colour."""
    rng = random.Random(number)
    image = Image.new("RGB", (20 + number, 40 - number), tuple(rng.choices(range(256), k=3)))
    image.paste(tuple(rng.choices(range(256), k=3)), (4, 4, 14, 14))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar with these files."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*values: str) -> list[dict[str, str]]:
    """LLaVA's conversation: a human's turn, an answer, and so on."""
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def all_batches(sampler: StepSampler) -> list[list[int]]:
    """The micro-batches of all steps, one after the other."""
    steps = range(sampler.start_step, sampler.steps)
    return [batch for step in steps for batch in sampler.micro_batches(step)]


def write_corpora(folder: Path) -> Path:
    """Write `captions/` (two shards) and `chat.jsonl` with its images, a third of it text alone."""
    rng = random.Random(5)
    (folder / "captions").mkdir()
    for shard in range(2):
        members = {}
        for number in range(shard, NUM_IMAGES, 2):
            members[f"{number:04d}.jpg"] = jpeg(number)
            members[f"{number:04d}.txt"] = " ".join(rng.choices(WORDS, k=rng.randint(2, 9))).encode()
        write_tar(folder / "captions" / f"{shard:06d}.tar", members)
    rows = []
    for number in range(NUM_IMAGES):
        has_image = number % 3 != 0
        answers = [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(rng.randint(1, 3))]
        values = [value for answer in answers for value in ("what is in the picture?", answer)]
        row: dict[str, Any] = {"id": f"chat-{number}", "conversations": turns(*values)}
        if has_image:
            (folder / f"{number}.jpg").write_bytes(jpeg(number))
            row["image"] = f"{number}.jpg"
            row["conversations"][0]["value"] = "<image>\n" + values[0]
        rows.append(row)
    write_jsonl(folder / "chat.jsonl", rows)
    return folder

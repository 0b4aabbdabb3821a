"""What the loader costs on top of decoding and resizing, and whether its memory grows with the corpus.

    python -m bench.data [--images 100] [--size 448] [--rounds 7] [--samples 0] [--out data.json]

Each loader turns the same JPEG files (640 x 480, about 100 KB) into images of the same pixels. `pillow` only
decodes and resizes, twice as the released preprocessing does; the others also read, normalise, and give
batches: `owl2` from shards in its own order, with captions tokenised and packed; a plain DataLoader over a
folder; and webdataset over the same shards, both with captions as they are. No workers: figures are process
CPU time on one thread, the loaders take turns within each round, and `ratio` is the median over rounds of
time / time of `pillow`. `--samples` then reads that many tiny ones from shards with two workers, their images
left closed, and watches memory.
"""

import io
import json
import os
import platform
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import jsonargparse
import torch
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from owl2.data.dataset import SampleDataset
from owl2.data.inspect.inspection import ByteTokenizer
from owl2.data.loader import BatchLoader
from owl2.data.order import Mixture, StepSampler
from owl2.data.readers.base import Source
from owl2.data.readers.shards import TarSource
from owl2.files import write_file
from owl2.processor import ImageTransform, Processor

BATCH = 8
PAIRS_OF_TINY = 10_000
"""In one shard that is linked under many names."""
CAPTION = "an owl on the branch of an old tree, looking over its shoulder at whoever took the image"

Run = Callable[[], object]
Item = tuple[torch.Tensor, str]


def jpeg(number: int, width: int = 640, height: int = 480) -> bytes:
    """An image with shapes, gradients and grain, as large as a photograph of its size."""
    rng = random.Random(number)
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    for _ in range(20):
        box = rng.randrange(width), rng.randrange(height)
        patch = Image.new("RGB", (width // 5 + 1, height // 5 + 1), tuple(rng.choices(range(256), k=3)))
        image.paste(patch, box)
    grain = Image.effect_noise((width, height), 40).convert("RGB")
    file = io.BytesIO()
    Image.blend(image, grain, 0.3).save(file, "JPEG", quality=88)
    return file.getvalue()


def write_shard(path: Path, images: Sequence[bytes]) -> None:
    """Write a WebDataset shard; a caption for each image."""
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            for name, data in ((f"{number:06d}.jpg", image), (f"{number:06d}.txt", CAPTION.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


class Folder(Dataset[Item]):
    """What a plain DataLoader reads: images and captions as files of one folder."""

    def __init__(self, folder: Path, transform: ImageTransform):
        self.images = sorted(folder.glob("*.jpg"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        path = self.images[index]
        with Image.open(path) as image:
            pixels = self.transform(image.convert("RGB"))
        return pixels, path.with_suffix(".txt").read_text(encoding="utf-8")


class Bench:
    """The same images in a folder and in shards, and loaders for them."""

    def __init__(self, root: Path, num_images: int, size: int):
        self.root = root
        self.transform = ImageTransform(size)
        self.num_images = num_images // BATCH * BATCH
        images = [jpeg(number) for number in range(self.num_images)]
        self.mean_bytes = statistics.mean(map(len, images))
        for kind in ("folder", "shards"):
            (root / kind).mkdir()
        for number, image in enumerate(images):
            (root / "folder" / f"{number:06d}.jpg").write_bytes(image)
            (root / "folder" / f"{number:06d}.txt").write_text(CAPTION, encoding="utf-8")
        half = self.num_images // 2
        write_shard(root / "shards" / "000000.tar", images[:half])
        write_shard(root / "shards" / "000001.tar", images[half:])
        processor = Processor(ByteTokenizer(), self.transform, image_token_id=-200, tokens_per_image=65)
        source = TarSource("shards", root / "shards")
        self.dataset = SampleDataset(
            [source], ["none"], Mixture([len(source)], [1.0], seed=0), processor, 2048
        )
        self.files = sorted((root / "folder").glob("*.jpg"))

    def loaders(self) -> dict[str, Run]:
        """Each reads all images once."""
        return {name: getattr(self, name) for name in ("pillow", "owl2", "folder", "webdataset")}

    def pillow(self) -> int:
        """Decode and resize."""
        size = (self.transform.size, self.transform.size)
        for path in self.files:
            image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
            edge = max(image.size)
            image.resize((edge, edge), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
        return len(self.files)

    def owl2(self) -> int:
        """The loader of training, workers aside."""
        sampler = StepSampler(
            micro_batch_size=BATCH,
            accumulation=1,
            ranks=1,
            rank=0,
            start_step=0,
            steps=self.num_images // BATCH,
        )
        batches = BatchLoader(
            self.dataset, sampler, num_workers=0, bad_samples=self.root / "bad.jsonl", max_bad_fraction=0.0
        )
        return sum(len(batch.pixel_values) for batch in batches if batch is not None)

    def folder(self) -> int:
        """A plain DataLoader with shuffling."""
        dataset = Folder(self.root / "folder", self.transform)
        return sum(len(pixels) for pixels, _ in DataLoader(dataset, batch_size=BATCH, shuffle=True))

    def webdataset(self) -> int:
        """webdataset in the order of the shards."""
        shards = sorted(map(str, (self.root / "shards").glob("*.tar")))
        dataset = webdataset.WebDataset(shards, shardshuffle=False).decode("pilrgb").to_tuple("jpg", "txt")
        batches = dataset.map_tuple(self.transform, str).batched(BATCH)
        return sum(len(pixels) for pixels, _ in DataLoader(batches, batch_size=None))


def measure(runs: dict[str, Run], num_images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Let the loaders take turns; one round that is not counted fills the caches first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            count = run()
            spent = time.process_time() - began
            assert count == num_images, f"{name} gave {count} of {num_images} images"
            if turn:
                seconds[name].append(spent)
    bare = seconds["pillow"]
    return {
        name: {
            "ratio": statistics.median(s / b for s, b in zip(spent, bare, strict=True)),
            "ms": 1000 * statistics.median(spent) / num_images,
            "per_s": num_images / statistics.median(spent),
        }
        for name, spent in seconds.items()
    }


class Reads(Dataset[int]):
    """Draw, index and reading of a sample, its image left closed."""

    def __init__(self, source: Source):
        self.source = source
        self.mixture = Mixture([len(source)], [1.0], seed=0)

    def __getitem__(self, n: int) -> int:
        sample = self.source[self.mixture[n].index]
        return len(sample.messages[0]["content"][0]["image"].read())


def watch_memory(root: Path, num_samples: int, points: int = 5) -> list[dict[str, float]]:
    """Read all samples of a corpus once; return MB of the main process and its workers at several points."""
    (root / "tiny").mkdir()
    pairs = min(num_samples, PAIRS_OF_TINY)
    write_shard(root / "tiny" / "000000.tar", [jpeg(0, 16, 16)] * pairs)
    for number in range(1, num_samples // pairs):
        os.link(root / "tiny" / "000000.tar", root / "tiny" / f"{number:06d}.tar")
    figures = [memory_now(0)]
    reads = Reads(TarSource("tiny", root / "tiny"))
    total = len(reads.source)
    figures.append(memory_now(0))
    loader = DataLoader(reads, batch_sampler=batches_of(total), num_workers=2, collate_fn=sum)
    for number, _ in enumerate(loader, start=1):
        if number % max(1, total // BATCH // points) == 0:
            figures.append(memory_now(number * BATCH))
    return figures


def batches_of(total: int) -> list[range]:
    return [range(begin, min(begin + BATCH, total)) for begin in range(0, total, BATCH)]


def memory_now(samples: int) -> dict[str, float]:
    """Resident MB of this process and of its largest child."""
    children = [resident(child.pid) for child in active_children() if child.pid is not None]
    return {"samples": samples, "main": resident(os.getpid()), "worker": max(children, default=0.0)}


def resident(pid: int) -> float:
    """Resident MB of a process, from Linux's /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def show(results: dict[str, dict[str, float]], memory: Sequence[dict[str, float]]) -> None:
    """Print both tables."""
    console = Console(width=110)
    if results:
        table = Table("loader", "ms an image", "images a CPU second", "ratio")
        for name, row in results.items():
            table.add_row(name, f"{row['ms']:.2f}", f"{row['per_s']:.1f}", f"{row['ratio']:.3f}")
        console.print(table)
    if memory:
        table = Table("samples read", "main, MB", "worker, MB")
        for row in memory:
            table.add_row(f"{row['samples']:,}", f"{row['main']:.1f}", f"{row['worker']:.1f}")
        console.print(table)


@contextmanager
def own_cache() -> Iterator[Path]:
    """A folder for the corpora that also holds their indices."""
    with TemporaryDirectory() as folder, patch.dict(os.environ, OWL2_CACHE=f"{folder}/cache"):
        yield Path(folder)


def main(
    images: int = 100, size: int = 448, rounds: int = 7, samples: int = 0, out: Path | None = None
) -> None:
    """Time the loaders, and watch memory.

    Args:
        images: how many different images; rounded down to whole batches of 8; 0 for none.
        size: side in pixels of what the vision encoder sees.
        rounds: in each, every loader reads all images once.
        samples: tiny samples to read while memory is watched; 0 for none.
        out: JSON file for the figures.
    """
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    memory: list[dict[str, float]] = []
    with own_cache() as root:
        if images:
            bench = Bench(root, images, size)
            results = measure(bench.loaders(), bench.num_images, rounds)
        if samples:
            memory = watch_memory(root, samples)
    show(results, memory)
    if out is not None:
        settings = {"images": images, "size": size, "rounds": rounds, "samples": samples}
        record = {**settings, "machine": platform.machine(), "results": results, "memory": memory}
        write_file(out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)

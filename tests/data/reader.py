"""A rank that reads batches and writes down what it read, to be killed at any moment."""

import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

from owl2.data.dataset import SampleDataset
from owl2.data.loader import BatchLoader, Sampler
from owl2.data.order import Mixture, StepSampler
from owl2.data.packing import PackSampler
from owl2.data.readers.sources import open_source
from owl2.processor import ImageTransform, Processor
from owl2.processor.tokenizer import load_tokenizer

BATCH = 12
STEPS = 2000
"""More than a test waits for."""


@dataclass(frozen=True)
class Reader:
    """One rank of a run over the tiny corpora."""

    corpora: Path
    tokenizer: Path
    out: Path
    is_packed: bool
    ranks: int = 1
    rank: int = 0
    num_workers: int = 0
    start_step: int = 0

    @property
    def log(self) -> Path:
        """A line for each finished step: its number, and the samples of its micro-batches."""
        return self.out / f"from-{self.start_step}-rank-{self.rank}.jsonl"

    def batches(self, steps: int = STEPS) -> BatchLoader:
        """What `owl2 train` reads."""
        processor = Processor(
            load_tokenizer(self.tokenizer), ImageTransform(28), image_token_id=-200, tokens_per_image=5
        )
        sources = [open_source(p.stem, p) for p in (self.corpora / "captions", self.corpora / "chat.jsonl")]
        mixture = Mixture([len(source) for source in sources], [1, 2], seed=6)
        dataset = SampleDataset(sources, ["crop_flip", "none"], mixture, processor, max_tokens=120)
        span = {"ranks": self.ranks, "rank": self.rank, "start_step": self.start_step, "steps": steps}
        sampler: Sampler = PackSampler(dataset.size, BATCH, 160, **span)
        if not self.is_packed:
            sampler = StepSampler(micro_batch_size=1, accumulation=BATCH // self.ranks, **span)
        log = self.out / "bad.jsonl"
        return BatchLoader(
            dataset, sampler, num_workers=self.num_workers, bad_samples=log, max_bad_fraction=0
        )

    def run(self) -> None:
        """Read on and on."""
        step, samples = self.start_step, []
        with self.log.open("w") as file:
            for batch, is_last in self.batches().micro_batches():
                samples.append(list(batch.keys) if batch else [])
                if is_last:
                    file.write(json.dumps([step, samples]) + "\n")
                    file.flush()
                    step, samples = step + 1, []
                    time.sleep(0.001)

    def finished(self) -> dict[int, list[list[str]]]:
        """What was read, by step; a line that was torn is no step."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        return {step: samples for step, samples in map(json.loads, lines)}


def run(reader: Reader) -> None:
    """What the process of a rank does."""
    # As in a process of its own: workers that notice by their parent's end that they should end.
    multiprocessing.set_start_method("fork", force=True)
    reader.run()

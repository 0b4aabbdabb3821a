"""A share of every source is held out by its number: never drawn, measured, the same after any resume."""

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl2.data.holdout import Part
from owl2.data.readers.base import Source
from owl2.data.readers.sources import open_source
from owl2.data.sample import Sample
from owl2.train.config import DataConfig, SourceConfig, TrainConfig, TrainConfigError, ValidationConfig
from owl2.train.metrics import read_metrics
from owl2.train.prepare import load_stage, open_dataset
from owl2.train.ranks import ALONE
from owl2.train.summary import Summary
from owl2.train.validate import Validation
from tests.train.ranks import Pool, all_returned
from tests.train.splits import split, train_on_rank
from tests.train.tiny import losses, quiet, run_until, run_whole, stage


class Numbers(Source):
    """A source of any size whose samples are their numbers."""

    def __init__(self, size: int, name: str = "numbers"):
        self.size, self.name, self.in_slices = size, name, False

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.name, str(index), [])

    def fingerprint(self) -> str:
        return "0" * 64


def parts(size: int, share: float, seed: int = 0, name: str = "numbers") -> tuple[list[int], list[int]]:
    """The numbers that are trained on, and those that are held out."""
    source = Numbers(size, name)
    both = [Part(source, share, seed, is_held_out=flag) for flag in (False, True)]
    trained, held_out = ([int(part[n].key) for n in range(len(part))] for part in both)
    return trained, held_out


@given(st.integers(1, 2000), st.floats(1e-3, 0.5).map(lambda share: round(share, 4)), st.integers(0, 9))
def test_every_sample_is_trained_on_or_held_out_in_the_order_of_the_source(
    size: int, share: float, seed: int
) -> None:
    trained, held_out = parts(size, share, seed)
    assert sorted(trained + held_out) == list(range(size))
    assert (trained, held_out) == (sorted(trained), sorted(held_out))
    assert len(held_out) == int(size * Fraction(str(share)))


def test_which_samples_are_held_out_depends_on_the_seed_the_name_and_nothing_else() -> None:
    first = parts(1000, 0.1)
    assert parts(1000, 0.1) == first
    assert parts(1000, 0.1, seed=1)[1] != first[1]
    assert parts(1000, 0.1, name="other")[1] != first[1]
    more = parts(1100, 0.1)[1]
    assert more[:100] == first[1], "rows that were added leave those before where they are"


def held_out_stage(run: Path, checkpoint: Path, corpora: Path, **changes: Any) -> TrainConfig:
    sources = [
        SourceConfig(name="captions", path=corpora / "captions", augment="crop_flip"),
        SourceConfig(name="chat", path=corpora / "chat.jsonl", weight=2),
    ]
    data = DataConfig(sources=sources, max_tokens=512, validation_share=0.2)
    return stage(run, checkpoint, corpora, **{"data": data, **changes})


def test_what_is_measured_is_never_drawn_and_the_two_together_are_all(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = held_out_stage(tmp_path, checkpoint, corpora)
    _, processor = load_stage(config)
    dataset = open_dataset(config, processor)
    drawn = {dataset[n][0] for n in range(300)}
    validation = Validation(config, processor, 0, ALONE, quiet())
    measured = {each[n][0] for each in validation.datasets.values() for n in range(len(each.sources[0]))}
    names = ["captions", "chat"]
    paths = [corpora / "captions", corpora / "chat.jsonl"]
    sources = [open_source(name, path) for name, path in zip(names, paths, strict=True)]
    every = {f"{source.name}:{source[n].key}" for source in sources for n in range(len(source))}
    assert len(measured) == 8
    assert not drawn & measured
    assert drawn | measured == every


def test_a_run_shows_how_many_are_held_out_measures_them_and_resumes_bit_for_bit(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    config = held_out_stage(tmp_path / "whole", checkpoint, corpora)
    run_whole(config)
    summary = Summary.read(config.run)
    assert summary is not None
    assert [(corpus.samples, corpus.held_out) for corpus in summary.corpora] == [(16, 4), (16, 4)]
    assert [row[1] for row in summary.corpus_rows()] == ["16 (4 held out)"] * 2
    (row,) = read_metrics(config.run, "validation.jsonl")
    assert row.keys() == {"step", "loss/captions", "loss/chat"}
    cut = dataclasses.replace(config, run=tmp_path / "cut")
    run_until(cut, 3, monkeypatch)
    run_whole(cut)
    assert losses(cut.run) == losses(config.run)
    assert read_metrics(cut.run, "validation.jsonl") == [row]
    many = split(config, tmp_path / "many", 2)
    all_returned(pool.run(2, train_on_rank, many))
    assert losses(many.run) == pytest.approx(losses(config.run), rel=1e-4)
    packed = dataclasses.replace(
        config,
        run=tmp_path / "packed",
        data=dataclasses.replace(config.data, pack_tokens=512),
        micro_batch_size=1,
        accumulation=1,
    )
    run_whole(packed)
    assert losses(packed.run) == pytest.approx(losses(config.run), rel=1e-4)
    with pytest.raises(TrainConfigError, match=r"data.validation_share: 0.2 -> 0.1"):
        run_whole(dataclasses.replace(cut, data=dataclasses.replace(cut.data, validation_share=0.1), steps=9))


def test_a_share_that_holds_out_nothing_and_a_name_that_comes_twice_are_errors(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    config = held_out_stage(tmp_path / "run", checkpoint, corpora)
    less = dataclasses.replace(config, data=dataclasses.replace(config.data, validation_share=0.04))
    message = r"0.04 of 20 sample.s., the largest source, is less than one; raise it to 0.05 or leave it out"
    with pytest.raises(TrainConfigError, match=message):
        run_whole(less)
    chat = SourceConfig(name="chat", path=corpora / "chat.jsonl")
    with pytest.raises(TrainConfigError, match=r"validation.sources must be there and have different names"):
        dataclasses.replace(config, validation=ValidationConfig(sources=[chat])).check()
    for share in (0.0, 0.6):
        with pytest.raises(TrainConfigError, match=f"data.validation_share = {share} must be"):
            dataclasses.replace(config, data=dataclasses.replace(config.data, validation_share=share)).check()


def test_sources_for_validation_and_a_held_out_share_are_measured_together(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    own = SourceConfig(name="own", path=corpora / "chat.jsonl")
    validation = ValidationConfig(sources=[own], every=0.5, samples=3)
    config = held_out_stage(tmp_path, checkpoint, corpora, validation=validation)
    run_whole(config)
    rows = read_metrics(config.run, "validation.jsonl")
    assert [row["step"] for row in rows] == [0, 4, 7], "every half, and before and after"
    assert rows[0].keys() == {"step", "loss/captions", "loss/chat", "loss/own"}
    asked = [json.loads(line)["key"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [key.partition(":")[0] for key in asked[:3]] == ["captions", "chat", "own"]

"""Held-out sources are measured at their intervals, token by token, alike on one rank and many."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from owl2.checkpoint import load_model
from owl2.data.loader import Collate
from owl2.train.config import SourceConfig, TrainConfig, TrainConfigError, ValidationConfig
from owl2.train.prepare import load_stage, open_dataset
from owl2.train.ranks import ALONE, Ranks
from owl2.train.validate import Validation, shares
from tests.data.small import write_jsonl
from tests.train.ranks import Pool, all_returned
from tests.train.splits import split, train_on_rank
from tests.train.tiny import quiet, run_whole, stage


def validated(run: Path, checkpoint: Path, corpora: Path) -> TrainConfig:
    """A run that measures seven samples of the chats every second of three steps."""
    chat = SourceConfig(name="held-out", path=corpora / "chat.jsonl")
    held_out = ValidationConfig(sources=[chat], every=2, max_samples=7)
    config = stage(run, checkpoint, corpora, steps=3, validation=held_out)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_steps=1))


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]


def test_held_out_sources_are_measured_at_intervals_and_at_the_end(
    checkpoint: Path, corpora: Path, tmp_path: Path, pool: Pool
) -> None:
    config = validated(tmp_path / "one", checkpoint, corpora)
    run_whole(config)
    assert [row["step"] for row in rows(config.run)] == [2, 3]
    assert rows(config.run)[-1]["loss/held-out"] == pytest.approx(direct(config), rel=1e-5)
    many = split(config, tmp_path / "many", 2)
    all_returned(pool.run(2, train_on_rank, many))
    for ours, theirs in zip(rows(many.run), rows(config.run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_state_saved_after_a_measurement_has_the_moments_of_every_parameter(
    checkpoint: Path, corpora: Path, tmp_path: Path, pool: Pool
) -> None:
    config = dataclasses.replace(validated(tmp_path, checkpoint, corpora), save_every=2)
    all_returned(pool.run(2, train_on_rank, split(config, tmp_path, 2)))
    names: set[str] = set()
    for file in (tmp_path / "state/step-0000002").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    parameters = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    moments = {name.removeprefix("optimizer.") for name in names if name.endswith(".exp_avg")}
    assert len(parameters) > 100
    assert moments == {f"{name}.exp_avg" for name in parameters}


def direct(config: TrainConfig) -> float:
    """The loss of the finished checkpoint on the same seven samples, one after the other."""
    assert config.validation is not None
    model = load_model(config.run / "checkpoint", progress=False)
    _, processor = load_stage(config)
    data = dataclasses.replace(config.data, sources=config.validation.sources)
    dataset = open_dataset(dataclasses.replace(config, data=data), processor)
    in_order = {dataset.mixture[n].index: n for n in range(1000)}
    batch, _ = Collate(dataset.processor)([dataset[in_order[index]] for index in range(7)])
    assert batch is not None
    with torch.no_grad():
        total = model.token_losses(batch.input_ids, batch.layout, batch.targets, batch.pixel_values).sum()
    return total.item() / batch.targets.count


def test_a_held_out_source_whose_turns_stand_apart_has_the_loss_of_its_questions_one_by_one(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    conversations = [json.loads(line) for line in (corpora / "chat.jsonl").read_text().splitlines()[:7]]
    questions = []
    for row in conversations:
        talk = row["conversations"]
        for n in range(0, len(talk), 2):
            first = {**talk[n], "value": "<image>" * ("image" in row and n > 0) + talk[n]["value"]}
            questions.append({**row, "id": f"{row['id']}-{n}", "conversations": [first, talk[n + 1]]})
    assert len(questions) > len(conversations)
    talks, single = write_jsonl(tmp_path / "talks.jsonl", conversations), tmp_path / "single.jsonl"
    write_jsonl(single, questions)
    sources = [
        SourceConfig(name="together", path=talks, image_root=corpora),
        SourceConfig(name="apart", path=talks, image_root=corpora, turns="apart"),
        SourceConfig(name="one by one", path=single, image_root=corpora),
    ]
    config = stage(tmp_path, checkpoint, corpora, validation=ValidationConfig(sources=sources))
    objective, processor = load_stage(config)
    row = Validation(config, processor, 0, ALONE, quiet()).measure(objective, 1)
    assert row["loss/apart"] == pytest.approx(row["loss/one by one"], rel=1e-5)
    assert row["loss/together"] != pytest.approx(row["loss/apart"], rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 4, 7, 12])
def test_every_sample_is_measured_once_and_ranks_have_equally_many_micro_batches(
    ranks: int, num_samples: int
) -> None:
    each = [[list(share) for share in shares(num_samples, 2, Ranks(rank, ranks))] for rank in range(ranks)]
    assert len({len(batches) for batches in each}) == 1
    assert sorted(n for batches in each for batch in batches for n in batch) == list(range(num_samples))
    assert max(len(batch) for batches in each for batch in batches) <= 2


def test_a_validation_that_cannot_be_is_an_error(checkpoint: Path, corpora: Path, tmp_path: Path) -> None:
    config = validated(tmp_path, checkpoint, corpora)
    assert config.validation is not None
    never = dataclasses.replace(config.validation, every=0)
    with pytest.raises(TrainConfigError, match=r"validation.every = 0 must be 1 or more"):
        dataclasses.replace(config, validation=never).check()
    colon = dataclasses.replace(config.validation, sources=[SourceConfig(name="a:b", path=corpora)])
    with pytest.raises(TrainConfigError, match=r"a name of validation\.sources has a colon"):
        dataclasses.replace(config, validation=colon).check()

"""The mixture of Table 14 from miniature official files by one command: shares, labels, configuration."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from owl2.__main__ import main
from owl2.cli.train import read_config
from owl2.data.dataset import SampleDataset
from owl2.data.order import Mixture
from owl2.data.readers.base import Source
from owl2.data.readers.rows import IMAGE_MARKS
from owl2.data.readers.sources import open_source
from owl2.data.recipes.img2dataset import ShardRecipe
from owl2.data.recipes.recipe import find_recipes
from owl2.processor import Encoding, Processor, SentencePieceTokenizer
from owl2.train.config import DataConfig, SourceConfig
from owl2.train.metrics import read_metrics
from tests.data.small import jpeg, turns, write_jsonl
from tests.processor.small import WORDS
from tests.train.tiny import run_whole, stage, write_checkpoint

CONFIGS = Path(__file__).parents[3] / "owl2/configs"
TABLE_14 = {
    "sharegpt": 40,
    "slimorca": 518,
    "llava_158k": 158,
    "coco": 82,
    "textcaps": 22,
    "vqav2": 83,
    "gqa": 72,
    "okvqa": 9,
    "ocrvqa": 80,
    "aokvqa": 50,
    "refcoco": 30,
    "visual_genome": 86,
}
"""Thousands of samples."""


@pytest.fixture(scope="module")
def mixture(official: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SourceConfig]:
    """The sources of a stage configuration over which one command's result is laid."""
    out = tmp_path_factory.mktemp("data") / "instruct"
    main(["data", "convert", "instruct", "--source", str(official), "--out", str(out), "--workers", "1"])
    return read_config([str(CONFIGS / "instruct.yaml"), "--config", str(out / "instruct.yaml")]).data.sources


@pytest.fixture(scope="module")
def mixture_file(mixture: list[SourceConfig]) -> Path:
    return Path(mixture[0].path).with_name("instruct.yaml")


def open_all(sources: list[SourceConfig]) -> list[Source]:
    return [open_source(source.name, source.path, source.image_root) for source in sources]


def test_one_command_makes_the_mixture_of_table_14(mixture: list[SourceConfig]) -> None:
    assert {source.name: source.weight for source in mixture} == TABLE_14
    assert sum(TABLE_14.values()) == 1230, "1.23M in all"
    assert {source.augment for source in mixture} == {"none"}


def test_intended_and_actual_shares_agree_over_100_000_draws(mixture: list[SourceConfig]) -> None:
    """Of the paper's sizes, and of the miniatures, which are passed over thousands of times."""
    weights = [source.weight for source in mixture]
    miniature = [len(source) for source in open_all(mixture)]
    for sizes, count in ((miniature, 20_000), ([int(1000 * weight) for weight in weights], 100_000)):
        order = Mixture(sizes, weights, seed=3)
        drawn = Counter(order[n].source for n in range(count))
        for number, weight in enumerate(weights):
            assert abs(drawn[number] / count / (weight / 1230) - 1) < 0.01, "of each source's own share"
        assert order.counts(count) == [drawn[number] for number in range(len(weights))]


def test_the_table_of_intended_and_actual_draws_is_within_1_percent(
    mixture_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "mixture", str(mixture_file), "--draws", "100000"])
    printed = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in printed}
    assert rows.keys() == TABLE_14.keys()
    for name, (samples, intended, actual, off, drawn, passes) in rows.items():
        assert float(intended.strip("%")) == pytest.approx(100 * TABLE_14[name] / 1230, abs=6e-4)
        assert float(actual.strip("%")) == pytest.approx(int(drawn.replace(",", "")) / 1000)
        assert float(off.strip("%")) < 1
        assert float(passes.replace(",", "")) == pytest.approx(
            int(drawn.replace(",", "")) / int(samples), abs=6e-3
        )
    assert sum(int(row[4].replace(",", "")) for row in rows.values()) == 100_000


def test_a_file_without_sources_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("data: {seed: 1}")
    with pytest.raises(SystemExit):
        main(["data", "mixture", str(tmp_path / "a.yaml")])
    assert "a.yaml has no data.sources as a stage has them" in capsys.readouterr().err


def test_50_steps_of_training_on_the_whole_mixture(
    mixture: list[SourceConfig], sentencepiece_tokenizer: SentencePieceTokenizer, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", sentencepiece_tokenizer)
    data = DataConfig(sources=mixture, max_tokens=512, pack_tokens=512)
    shape = {"global_batch_size": 4, "micro_batch_size": 1, "accumulation": 1}
    config = stage(tmp_path / "run", checkpoint, tmp_path, data=data, steps=50, **shape)
    run_whole(config)
    rows = read_metrics(config.run)
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not (config.run / "bad_samples.jsonl").exists(), "every sample was used"


def test_every_sample_of_the_mixture_can_be_trained_on(
    mixture: list[SourceConfig], processor: Processor
) -> None:
    sources = open_all(mixture)
    for source in sources:
        dataset = SampleDataset([source], ["none"], Mixture([len(source)], [1.0], 0), processor, 4096)
        for n in range(len(source)):
            key, item = dataset[n]
            assert isinstance(item, Encoding), f"{key}: {item}"


def answers_in(encoding: Encoding, processor: Processor) -> list[str]:
    """Decode each run of labelled tokens; a run must end with the end token."""
    answers, run = [], []
    for token_id, is_target in zip([*encoding.ids, -1], [*encoding.is_target, False], strict=True):
        if is_target:
            run.append(token_id)
        if run and (not is_target or token_id == processor.tokenizer.eos_token_id):
            assert run[-1] == processor.tokenizer.eos_token_id
            answers.append(processor.decode(run[:-1]))
            run = []
    return answers


def test_labelled_tokens_of_every_corpus_decode_to_exactly_its_answers(
    mixture: list[SourceConfig], processor: Processor
) -> None:
    checked = 0
    for config, source in zip(mixture, open_all(mixture), strict=True):
        rows = [json.loads(line) for line in Path(config.path).read_text(encoding="utf-8").splitlines()]
        dataset = SampleDataset([source], ["none"], Mixture([len(source)], [1.0], 0), processor, 4096)
        order = dataset.mixture
        for n in range(len(source)):
            _, item = dataset[n]
            assert isinstance(item, Encoding)
            said = [turn["value"] for turn in rows[order[n].index]["conversations"][1::2]]
            assert answers_in(item, processor) == said
            checked += len(said)
    assert checked > 30


def generated(rng: random.Random, number: int, folder: Path) -> dict[str, Any]:
    """A conversation of one of every shape: up to four exchanges, up to three images in any turn."""
    words = [*WORDS, "naïve", "你好", "🦙", "1,234", "(a)", "USER:", "ASSISTANT:", "two\nlines", "</s>"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 9)))

    values = []
    for _ in range(rng.randint(1, 4)):
        values += [text(), text()]
    names = [f"{n}.jpg" for n in range(number % 4)]
    for _ in names:
        turn = 2 * rng.randrange(len(values) // 2)
        mark = rng.choice(IMAGE_MARKS)
        values[turn] = rng.choice(
            [mark + values[turn], f"{values[turn]} {mark} {text()}", f"{values[turn]}\n{mark}"]
        )
    return {"id": f"generated-{number}", "image": names, "conversations": turns(*values)}


@pytest.mark.parametrize("template", ["mplug_owl2", "vicuna_v1"])
def test_labels_of_200_generated_conversations_decode_to_exactly_the_answers(
    tmp_path: Path, processor: Processor, template: str
) -> None:
    rng = random.Random(11)
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [generated(rng, number, tmp_path) for number in range(200)]
    source = open_source("generated", write_jsonl(tmp_path / "rows.jsonl", rows))
    dataset = SampleDataset(
        [source], ["none"], Mixture([200], [1.0], 0), processor.replace(template=template), max_tokens=4096
    )
    shapes = set()
    for n in range(200):
        row = rows[dataset.mixture[n].index]
        key, item = dataset[n]
        assert isinstance(item, Encoding), f"{key}: {item}"
        said = [turn["value"] for turn in row["conversations"][1::2]]
        assert answers_in(item, processor) == said, key
        assert item.ids.count(processor.image_token_id) == 5 * len(row["image"])
        shapes.add((len(said), len(row["image"])))
    assert len(shapes) == 16, "one to four exchanges with none to three images"


def test_the_shipped_stages_name_the_paths_and_weights_of_the_recipes() -> None:
    """The stage `instruct` reads what `owl2 data convert instruct --out data/instruct` writes."""
    for name in ("instruct", "pretrain"):
        shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["sources"]
        recipes = {recipe.name: recipe for recipe in find_recipes(name)}
        assert {source["name"]: source["weight"] for source in shipped} == {
            recipe.name: recipe.weight for recipe in recipes.values()
        }
        for source in shipped:
            recipe = recipes[source["name"]]
            suffix = "" if isinstance(recipe, ShardRecipe) else ".jsonl"
            assert source["path"] == f"data/{name}/{recipe.name}{suffix}"
            assert source.get("augment", "none") == recipe.augment
            has_images = len(recipe.files) > 1
            assert ("image_root" in source) == has_images

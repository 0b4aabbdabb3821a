"""The world on disk: formats of real corpora, balanced tests, the same bytes every time, and restartable."""

import base64
import csv
import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from owl2.demo.world import corpus
from owl2.demo.world.corpus import WorldError, WorldSizes, write_world
from owl2.demo.world.vocabulary import colour_split
from tests.demo.held_out import HELD_OUT, uttered

TINY = WorldSizes(
    pretrain_images=6,
    instruct_images=6,
    val_images=6,
    test_questions=10,
    lm_conversations=12,
    text_conversations=5,
    easyvqa_images=2,
    image_size=32,
)


@pytest.fixture(scope="module")
def world(assets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "tiny"
    write_world(out, TINY, processes=1, assets=assets)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(out: Path) -> dict[str, str]:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_world_is_the_same_on_one_core_and_on_two(
    world: Path, assets: dict[str, Path], tmp_path: Path
) -> None:
    write_world(tmp_path / "again", TINY, processes=2, assets=assets)
    assert digest(tmp_path / "again") == digest(world)


def test_another_seed_gives_other_images(world: Path, assets: dict[str, Path], tmp_path: Path) -> None:
    write_world(tmp_path / "other", TINY, seed=1, processes=1, assets=assets)
    ours, other = digest(world), digest(tmp_path / "other")
    assert ours.keys() == other.keys()
    assert not {ours[name] for name in ours if name.endswith(".jpg")} & set(other.values())


def test_an_interrupted_world_is_finished_by_the_same_call_without_writing_parts_again(
    world: Path, assets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "world"
    written: list[str] = []

    def until_questions(kind: str, stop: bool) -> None:
        whole = corpus.WRITERS[kind]

        def write(world: corpus.World, part: corpus.Part) -> None:
            if stop and part.topic == "colour":
                raise KeyboardInterrupt
            written.append(part.path)
            whole(world, part)

        monkeypatch.setitem(corpus.WRITERS, kind, write)

    for kind in list(corpus.WRITERS):
        until_questions(kind, stop=True)
    with pytest.raises(KeyboardInterrupt):
        write_world(out, TINY, processes=1, assets=assets)
    assert not (out / "world.json").exists()
    before = list(written)
    monkeypatch.undo()
    for kind in list(corpus.WRITERS):
        until_questions(kind, stop=False)
    written.clear()
    write_world(out, TINY, processes=1, assets=assets)
    assert before
    assert not set(before) & set(written)
    assert digest(out) == digest(world)


def test_a_finished_world_is_left_alone(world: Path) -> None:
    before = digest(world)
    write_world(world, TINY, processes=1, assets={})
    assert digest(world) == before


def test_a_folder_with_another_world_is_an_error_that_says_what_differs(world: Path) -> None:
    with pytest.raises(WorldError, match=r"seed is 0, wanted 5\); remove the folder or choose another one"):
        write_world(world, TINY, seed=5)


@pytest.mark.parametrize("place", ["world.json", ".parts/plan.json"])
@pytest.mark.parametrize(
    ("content", "said"), [('{"version": 3, "seed": 0}', "version is 3, wanted 4"), ('{"vers', "not JSON")]
)
def test_an_older_or_damaged_world_is_an_error_that_says_what_to_do(
    tmp_path: Path, place: str, content: str, said: str
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(content)
    with pytest.raises(WorldError, match=f"{said}.*remove"):
        write_world(tmp_path, TINY)
    assert (tmp_path / place).read_text() == content


def test_captions_are_webdataset_shards_with_the_scene_as_truth(world: Path) -> None:
    with tarfile.open(world / "pretrain" / "000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = {name.split(".")[0] for name in files}
    assert len(keys) == TINY.pretrain_images
    for key in keys:
        assert Image.open(io.BytesIO(files[f"{key}.jpg"])).size == (32, 32)
        truth = json.loads(files[f"{key}.json"])
        text = files[f"{key}.txt"].decode()
        for item in truth["items"]:
            assert item["colour"] in text
            assert colour_split(item["name"], item["colour"]) == "train"


def test_instructions_are_llava_records_with_all_pairs_of_an_image_merged(world: Path) -> None:
    records = rows(world / "instruct" / "train.jsonl")
    assert len(records) == TINY.instruct_images
    for record in [*records, *rows(world / "instruct" / "easyvqa.jsonl")]:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [turn["value"].count("<|image|>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        assert turns[0]["value"].startswith("<|image|>")
        assert (world / "instruct" / record["image"]).is_file()
    assert max(len(record["conversations"]) for record in records) >= 12
    for name in ("instruct/text.jsonl", "lm/train.jsonl", "val/lm.jsonl", "val/text.jsonl"):
        for record in rows(world / name):
            assert "image" not in record
            assert "<|image|>" not in json.dumps(record)


def test_no_written_training_file_but_language_alone_speaks_of_a_held_out_pair(world: Path) -> None:
    said = [path.read_text(encoding="utf-8") for path in (world / "instruct").glob("*.jsonl")]
    for shard in (world / "pretrain").glob("*.tar"):
        with tarfile.open(shard) as tar:
            texts = [member for member in tar if member.name.endswith(".txt")]
            said += [tar.extractfile(member).read().decode() for member in texts]  # type: ignore[union-attr]
    assert len(said) == 3 + TINY.pretrain_images
    assert uttered(said)
    assert not uttered(said) & HELD_OUT
    assert uttered([(world / "lm" / "train.jsonl").read_text(encoding="utf-8")]) & HELD_OUT


def test_the_test_questions_are_balanced_and_their_images_exist(world: Path) -> None:
    records = rows(world / "test" / "questions.jsonl")
    assert Counter(record["kind"] for record in records) == dict.fromkeys(
        ("yes_no", "naming", "colour", "counting", "text"), TINY.test_questions
    )
    answers = {
        kind: Counter(r["answer"] for r in records if r["kind"] == kind) for kind in ("yes_no", "counting")
    }
    assert answers["yes_no"] == {"yes": 5, "no": 5}
    assert answers["counting"] == {str(n): 2 for n in range(1, 6)}
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        assert record["kind"] == "text" or (world / "test" / record["image"]).is_file()


def test_vqav2_files_have_the_official_layout(world: Path) -> None:
    questions = json.loads((world / "test/vqav2/v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    annotations = json.loads((world / "test/vqav2/v2_mscoco_val2014_annotations.json").read_text())[
        "annotations"
    ]
    ours = {record["question"] for record in rows(world / "test/questions.jsonl") if "image" in record}
    assert {question["question"] for question in questions["questions"]} == ours
    answers = {annotation["question_id"]: annotation for annotation in annotations}
    for question in questions["questions"]:
        name = f"COCO_{questions['data_subtype']}_{question['image_id']:012d}.jpg"
        assert (world / "test/coco/val2014" / name).is_file()
        annotation = answers[question["question_id"]]
        assert {a["answer"] for a in annotation["answers"]} == {annotation["multiple_choice_answer"]}
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
    assert {annotation["answer_type"] for annotation in annotations} == {"yes/no", "number", "other"}


def test_pope_files_have_as_many_yes_as_no_and_differ_in_the_negatives_only(world: Path) -> None:
    settings = {
        path.stem.split("_")[-1]: rows(path) for path in (world / "test/pope/output/coco").glob("*.json")
    }
    assert set(settings) == {"random", "popular", "adversarial"}
    for records in settings.values():
        assert Counter(record["label"] for record in records)["yes"] * 2 == len(records)
        assert [record["question_id"] for record in records] == list(range(1, len(records) + 1))
        assert all((world / "test/coco/val2014" / record["image"]).is_file() for record in records)
    yes = [[r["text"] for r in records if r["label"] == "yes"] for records in settings.values()]
    no = [[r["text"] for r in records if r["label"] == "no"] for records in settings.values()]
    assert yes[0] == yes[1] == yes[2]
    assert no[0] != no[1] != no[2]


def test_mmbench_rotations_keep_the_right_option(world: Path) -> None:
    csv.field_size_limit(10_000_000)
    with (world / "test/mmbench/mmbench_dev_20230712.tsv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream, delimiter="\t"))
    groups: dict[int, list[dict[str, str]]] = {}
    for row in table:
        groups.setdefault(int(row["index"]) % 1_000_000, []).append(row)
    for rotations in groups.values():
        assert [row["answer"] for row in rotations] != [rotations[0]["answer"]] * 4
        assert len({row[row["answer"]] for row in rotations}) == 1
        assert len({row["answer"] for row in rotations}) == 4
        Image.open(io.BytesIO(base64.b64decode(rotations[0]["image"]))).verify()


def test_the_world_folder_holds_no_scratch(world: Path) -> None:
    assert not (world / corpus.PARTS).exists()
    assert not [path for path in world.rglob(".*")]

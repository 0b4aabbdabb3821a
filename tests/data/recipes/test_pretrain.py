"""Web corpora: img2dataset's shards are taken as they are, repaired pair by pair, or refused whole."""

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from owl2.data.readers.shards import TarSource
from owl2.data.recipes.convert import DAMAGED, convert
from owl2.data.recipes.img2dataset import read_metadata
from owl2.data.recipes.recipe import all_recipes, find_recipes
from owl2.data.sample import DataError
from tests.data.recipes.official import SHARDED, jpeg, write_coco, write_image, write_shards
from tests.data.small import write_tar


def names_in(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def huge_png() -> bytes:
    """An image of 100,000 x 100,000 pixels, says its header."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("name", SHARDED)
def test_shards_without_a_fault_are_linked_and_read_by_training(
    converted: Path, official: Path, name: str
) -> None:
    source = TarSource(name, converted / name)
    assert [source[n].messages[1]["content"] for n in range(len(source))] == [
        f"Image {number} of shard {shard}" for shard in range(2) for number in range(3)
    ]
    assert source[0].messages[0]["content"][0]["image"].open().size == (40, 30)
    (original,) = (official / name).rglob("00000.tar")
    assert os.path.samefile(original, converted / name / "00000.tar"), "no second copy"


def test_every_pretraining_corpus_of_the_paper_has_its_recipe() -> None:
    assert {
        name for name, recipe in all_recipes().items() if recipe.stage == "pretrain" and recipe.in_paper
    } == set(SHARDED)


def test_coco_can_come_from_its_official_files_with_every_caption(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for image_id in (9, 25, 30):
        write_image(tmp_path / "coco" / "train2014" / f"COCO_train2014_{image_id:012d}.jpg")
    (recipe,) = find_recipes("coco_captions")
    report = convert(recipe, tmp_path, tmp_path / "out")
    assert (report.num_samples, report.path) == (15, "coco_captions.jsonl")
    line = (tmp_path / "out" / "coco_captions.jsonl").read_text().splitlines()[1]
    assert '"value": "<image>"' in line
    assert '"value": "Caption 1 of image 9."' in line


def test_faulty_pairs_are_left_out_and_counted_and_the_others_written(tmp_path: Path) -> None:
    good = {"a.jpg": jpeg((8, 8), 1), "a.txt": b"an owl", "a.json": b"{}"}
    faulty = {
        "b.jpg": jpeg((8, 8), 1),
        "c.txt": b"no image",
        "d.jpg": b"",
        "d.txt": b"empty image",
        "e.jpg": jpeg((8, 8), 1),
        "e.txt": "naïve".encode("latin-1"),
        "f.jpg": jpeg((8, 8), 1),
        "f.txt": b" \n",
        "g.png": huge_png(),
        "g.txt": b"a bomb",
    }
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "00000.tar", {**good, **faulty})
    (recipe,) = find_recipes("cc3m")
    report = convert(recipe, tmp_path / "in", tmp_path / "out")
    assert report.bad == {
        "no caption": 1,
        "no image": 1,
        "not an image": 1,
        "caption is not UTF-8": 1,
        "caption is blank": 1,
        "image is too large": 1,
    }
    assert report.num_samples == 1
    assert names_in(tmp_path / "out" / "cc3m" / "00000.tar") == ["a.jpg", "a.txt"]


def test_what_the_metadata_calls_a_success_must_be_in_the_shard(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "in", num_shards=1)
    assert read_metadata(folder / "00000.parquet") == (["000000000", "000000001", "000000002"], 1)
    write_tar(folder / "00000.tar", {"000000000.jpg": jpeg((8, 8), 1), "000000000.txt": b"an owl"})
    (recipe,) = find_recipes("coyo")
    report = convert(recipe, folder, tmp_path / "out")
    assert report.bad == {"in the metadata but not in the shard": 2}
    assert (report.num_samples, report.num_not_fetched) == (1, 1)


def test_metadata_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match=r"00000\.parquet has no readable columns"):
        read_metadata(tmp_path / "00000.parquet")


def test_a_damaged_shard_is_left_out_whole_and_taken_up_once_it_is_fetched_again(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "in")
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (recipe,) = find_recipes("laion_en")
    report = convert(recipe, folder, tmp_path / "out")
    assert report.bad == {DAMAGED: 1}
    assert report.num_samples == 3
    assert [path.name for path in (tmp_path / "out" / "laion_en").iterdir()] == ["00000.tar"]
    (folder / "00001.tar").write_bytes(whole)
    assert convert(recipe, folder, tmp_path / "out").num_samples == 6


def test_a_shard_of_another_source_is_not_mixed_in(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "in")
    (recipe,) = find_recipes("cc12m")
    convert(recipe, folder, tmp_path / "out")
    (folder / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"has 1 shard\(s\) that .* has not \(00001.tar\)"):
        convert(recipe, folder, tmp_path / "out")

"""Images and clips: found under the spellings of downloads, closed until shown, missing ones named."""

from pathlib import Path

import pytest

from owl2.eval.formats.media import MediaFolder, base64_image
from owl2.eval.formats.records import Record
from owl2.eval.locate import locate
from owl2.eval.task import DataMissing, RecordError

ROW = Record("file: record 1", {})


def folder(tmp_path: Path, *names: str) -> MediaFolder:
    (tmp_path / "media").mkdir()
    for name in names:
        (tmp_path / "media" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "media" / name).write_bytes(b"not an image")
    return MediaFolder("t", tmp_path, "media")


def test_a_folder_that_is_missing_or_a_file_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="t: missing images"):
        MediaFolder("t", tmp_path, "images")
    (tmp_path / "images").touch()
    with pytest.raises(DataMissing, match="t: missing images"):
        MediaFolder("t", tmp_path, "images")


def test_images_are_closed_until_needed_and_one_image_is_one_object(tmp_path: Path) -> None:
    media = folder(tmp_path, "a.jpg")
    image = media.image(ROW, "a.jpg")
    assert image is media.image(ROW, "a.jpg")
    assert (image.name, image.read()) == ("media/a.jpg", b"not an image")


@pytest.mark.parametrize("name", ["b.jpg", "nul\x00.jpg", "x" * 5000, "a.jpg/b.jpg", "", "."])
def test_a_missing_image_costs_its_record_whatever_its_name(tmp_path: Path, name: str) -> None:
    media = folder(tmp_path, "a.jpg")
    with pytest.raises(RecordError, match=r"file: record 1: .* is not in .*media") as caught:
        media.image(ROW, name)
    assert caught.value.skipped.lacks_file


def test_an_image_is_found_in_another_case_and_in_a_folder_of_its_own(tmp_path: Path) -> None:
    media = folder(tmp_path, "A.JPG", "4/image.PNG")
    assert media.file(ROW, "a.jpg").name == "A.JPG"
    assert media.file(ROW, "4/image.png") == tmp_path / "media/4/image.PNG"


def test_the_exact_name_comes_before_another_case(tmp_path: Path) -> None:
    media = folder(tmp_path, "A.jpg", "a.jpg")
    assert [media.file(ROW, name).name for name in ("a.jpg", "A.jpg")] == ["a.jpg", "A.jpg"]


def test_clips_are_found_by_any_of_their_names_whatever_their_suffix(tmp_path: Path) -> None:
    media = folder(tmp_path, "vid1.AVI", "vid2.txt", "x_5_15.webm")
    assert media.clip(ROW, "vid1").name == "vid1.AVI"
    assert media.clip(ROW, "vid3", "x_5_15").name == "x_5_15.webm"
    with pytest.raises(RecordError, match=r"vid2 or y \(\.mp4, \.avi.*is not in"):
        media.clip(ROW, "vid2", "y")


def test_an_image_in_a_table_is_decoded_when_it_is_read() -> None:
    assert base64_image("name", "aGk=").read() == b"hi"


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("pope/a.json", "pope/a.json"),
        ("POPE/A.json", "pope/a.json"),
        ("pope/a.jsonl", "pope/a.json"),
        ("pope/a.json", "pope/a.jsonl"),
        ("pope/a.json.gz", "pope/a.json"),
        ("Pope/A.JSONL.GZ", "pope/a.json"),
        ("dev/qa.csv.gz", "dev/qa.csv"),
        ("Dev", "dev"),
    ],
)
def test_official_files_are_found_under_the_spellings_of_downloads(
    tmp_path: Path, there: str, wanted: str
) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert locate(tmp_path, wanted) == tmp_path / there


@pytest.mark.parametrize("there", ["pope/a.json.txt", "pope/ab.json", "a.json", "pope/a.csv", "pope/a"])
def test_other_names_are_other_files(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert locate(tmp_path, "pope/a.json") is None

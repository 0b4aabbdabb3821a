"""Rows in the LLaVA format: what becomes of them, and what is said of those that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest

from owl2.data.readers.jsonl import JsonlSource
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError, Sample, StoredImage
from owl2.processor import ImageError
from tests.data.small import jpeg, turns, write_jsonl


def open_row(tmp_path: Path, row: Any) -> Sample:
    """Write one row and read it back as a sample."""
    write_jsonl(tmp_path / "rows.jsonl", [row])
    return JsonlSource("rows", tmp_path / "rows.jsonl")[0]


def shape(sample: Sample) -> list[list[str]]:
    """The parts of each turn; an image by its name in brackets."""
    return [
        [part["text"] if part["type"] == "text" else f"[{part['image'].name}]" for part in message["content"]]
        for message in sample.messages
    ]


def test_a_row_is_a_conversation_with_its_image_in_place(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "image": "a.jpg",
        "conversations": turns("<image>\nWhat is it?", "An owl.", "Sure?", "Yes."),
    }
    sample = open_row(tmp_path, row)
    assert (sample.source, sample.key) == ("rows", "7")
    assert [message["role"] for message in sample.messages] == ["user", "assistant"] * 2
    assert shape(sample) == [["[a.jpg]", "\nWhat is it?"], ["An owl."], ["Sure?"], ["Yes."]]


def test_both_marks_stand_for_images_and_a_list_fills_them_in_order(tmp_path: Path) -> None:
    row = {
        "id": "two",
        "image": ["a.jpg", "b/c.png"],
        "conversations": turns("First <|image|> then <image>?", "An owl.", "And now?", "A cat."),
    }
    assert shape(open_row(tmp_path, row))[0] == ["First ", "[a.jpg]", " then ", "[b/c.png]", "?"]


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": []}, {"image": ""}])
def test_a_row_without_an_image_is_text_alone(tmp_path: Path, image: dict[str, Any]) -> None:
    row = {"id": "text", "conversations": turns("What is 2 + 2?", "4"), **image}
    assert shape(open_row(tmp_path, row)) == [["What is 2 + 2?"], ["4"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"id": "x", "image": ["a.jpg", "b.jpg"], "conversations": turns("<image> is it?", "An owl.")},
            r"rows: sample x has 1 image mark\(s\) and 2 image\(s\)",
        ),
        (
            {"id": "x", "image": ["a.jpg"], "conversations": turns("<image><image>", "Two owls.")},
            r"sample x has 2 image mark\(s\) and 1 image\(s\)",
        ),
        (
            {"id": "x", "conversations": turns("hello", "hi", "bye", "bye")[1:]},
            "turn 1 of sample x is from 'gpt', expected 'human'",
        ),
        (
            {"id": "x", "conversations": [turns("hello")[0], {"from": "bot", "value": "hi"}]},
            "turn 2 of sample x is from 'bot', expected 'gpt'",
        ),
        ({"id": "x"}, r"line 1 of .*rows.jsonl has no image, no caption\. Its columns are id \(text\)"),
        ({"id": "x", "conversations": 5}, "line 1 of .* conversations of type number, which is no conv"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "conversations of type list, which is no conv"),
        (
            {"id": "x", "conversations": [{"from": "human", "value": None}]},
            "turn 1 of sample x is None, expected text",
        ),
        (
            {"id": "x", "image": [3], "conversations": turns("<image>", "hi")},
            "image of type list, which is no image",
        ),
        (["a", "list"], "line 1 of .*rows.jsonl: holds a list, expected an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_that_cannot_be_used_is_named_with_its_reason(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_row(tmp_path, row)


def test_blank_lines_do_not_count_as_rows_but_as_lines(tmp_path: Path) -> None:
    good = json.dumps({"id": "good", "conversations": turns("a", "b")})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{good}\n\n  \n{{broken\n{good[:20]}\n\n{good}", encoding="utf-8")
    source = JsonlSource("rows", path)
    assert len(source) == 4
    assert source[0].key == source[3].key == "good"
    with pytest.raises(DataError, match=r"rows: line 5 of .*rows.jsonl: not JSON"):
        source[1]
    with pytest.raises(DataError, match="line 6 of"):
        source[2]


@pytest.mark.parametrize("blank", ["", " ", "\t\r"])
@pytest.mark.parametrize("other", ["\x0b", "\x0c", "\x1c", "\ufeff"])
def test_a_line_that_only_looks_blank_is_a_row_of_its_own_and_no_part_of_the_one_before(
    tmp_path: Path, blank: str, other: str
) -> None:
    good = json.dumps({"id": "good", "conversations": turns("a", "b")})
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{blank}\n{other}\n{good}\n", encoding="utf-8", newline="")
    source = JsonlSource("rows", tmp_path / "rows.jsonl")
    assert len(source) == 3
    assert source[0].key == source[2].key == "good"
    with pytest.raises(DataError, match=r"line 3 of .*: not JSON"):
        source[1]


def test_unicode_and_windows_line_ends_are_read_as_they_are(tmp_path: Path) -> None:
    text = "Eule 🦉 · 猫头鹰 · e\u0301 \u2028 end"
    row = json.dumps({"id": "ü", "conversations": turns(text, "да")}, ensure_ascii=False)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n{row}\r\n".encode())
    source = JsonlSource("rows", path)
    assert len(source) == 2
    for sample in source[0], source[1]:
        assert sample.key == "ü"
        assert shape(sample) == [[text], ["да"]]


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"line 1 of .*rows.jsonl is not UTF-8: .* byte 0xe9"):
        JsonlSource("rows", path)[0]


def test_a_file_that_as_a_whole_is_not_utf_8_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [json.dumps({"conversations": turns("où?", f"là {n}")}, ensure_ascii=False) for n in range(50)]
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes("\n".join(rows).encode(encoding))
        with pytest.raises(
            DataError, match=r"rows.jsonl is not UTF-8 .*; convert it, for instance by `iconv"
        ):
            open_source("rows", path)
    path.write_bytes("\n".join(rows[:25]).encode() + b"\n" + "\n".join(rows[25:30]).encode("latin-1"))
    source = open_source("rows", path)
    assert source[24].text.endswith("là 24")
    with pytest.raises(DataError, match=r"line 27 of .* is not UTF-8"):
        source[26]


def test_a_corpus_on_the_local_disk_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path / "file"))
    source = open_source("rows", write_jsonl(tmp_path / "rows.jsonl", [{"conversations": turns("a", "b")}]))
    assert (len(source), source[0].key) == (1, "rows.jsonl:1")


def test_an_image_is_opened_late_below_the_image_root_and_named_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/good.jpg").write_bytes(jpeg(3))
    (tmp_path / "images/cut.jpg").write_bytes(jpeg(3)[:300])
    names = ["good.jpg", "cut.jpg", "gone.jpg"]
    rows = [{"id": name, "image": name, "conversations": turns("<image>", "x")} for name in names]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = open_source("rows", path, tmp_path / "images")
    images = [source[i].messages[0]["content"][0]["image"] for i in range(3)]
    assert all(isinstance(image, StoredImage) for image in images)
    assert images[0].open().size == (23, 37)
    with pytest.raises(ImageError, match=r"cut\.jpg: .*Truncated File Read"):
        images[1].open()
    with pytest.raises(FileNotFoundError, match=r"images/gone\.jpg"):
        images[2].open()


def test_what_is_no_corpus_is_an_error_that_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vqa: .*nowhere.jsonl does not exist"):
        open_source("vqa", tmp_path / "nowhere.jsonl")
    (tmp_path / "rows.csv").write_text("image,caption")
    with pytest.raises(
        DataError, match=r"rows.csv is neither a .jsonl, .json, .parquet, .arrow or .tar file nor a folder"
    ):
        open_source("vqa", tmp_path / "rows.csv")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"vqa: .*empty.jsonl has no rows"):
        open_source("vqa", tmp_path / "empty.jsonl")

"""JSON arrays: rows found by one pass over the file, whatever is in their texts; what is cut or damaged."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from owl2.data.readers import jsonl
from owl2.data.readers.jsonl import JsonlSource
from owl2.data.readers.sources import open_source
from owl2.data.sample import DataError
from tests.data.small import turns, write_jsonl

NASTY = ['"', "\\", "[", "]", "{", "}", "\\\\", '\\"', ",", "🦉", "\u2028", "\n", '"}]', "é", " "]


def rows_of(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def text() -> str:
        return "x" + "".join(rng.choices(NASTY, k=rng.randint(0, 12)))

    return [
        {"id": f"{n}", "meta": [[{"a": text()}], {}], "conversations": turns(text(), text())}
        for n in range(count)
    ]


def keys_and_texts(source: Any) -> list[tuple[str, str]]:
    return [(source[n].key, source[n].text) for n in range(len(source))]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize(
    "style", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}], ids=str
)
def test_an_array_has_the_rows_of_the_same_lines_at_any_size_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, style: dict[str, Any]
) -> None:
    rows = rows_of(9, seed=block)
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" * (block % 2) + f" \r\n{json.dumps(rows, **style)}\r\n".encode())
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", block)
    source = JsonlSource("rows", path)
    lines = JsonlSource("rows", write_jsonl(tmp_path / "rows.jsonl", rows))
    assert keys_and_texts(source) == keys_and_texts(lines)


def test_a_row_without_an_id_is_named_by_its_number_and_a_damaged_one_costs_itself(tmp_path: Path) -> None:
    good = json.dumps({"conversations": turns("What?", "An owl.")})
    path = tmp_path / "rows.json"
    path.write_text(f'[{good},\n{{"conversations": oops}},\n{good}, {good}  ]', encoding="utf-8")
    source = open_source("rows", path)
    assert [source[n].key for n in (0, 2, 3)] == ["rows.json:1", "rows.json:3", "rows.json:4"]
    with pytest.raises(DataError, match=r"rows: row 2 of .*rows.json: not JSON"):
        source[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no rows"),
        ("", "has no rows"),
        ('[{"conversations": []}, {"conversations"', "is a JSON array that has 2 rows and does not end"),
        ('[{"a": 1}]\n[{"a": 2}]\n', "is a JSON array that has 1 rows and goes on after its end"),
        ('{"data": [1],\n "b": {}\n}', "line 1 .* not JSON .*; expected is an object a line, or an array"),
        ('{"images": [], "annotations": [{"id": 3}]}', r"Its columns are annotations \(list\)"),
        ('["a", "b"]', "holds a list.*; expected is an object a line, or an array of objects"),
    ],
)
def test_what_is_no_array_of_rows_is_an_error_that_says_what_it_is(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"rows: .*{message}"):
        open_source("rows", tmp_path / "rows.json")


def test_lines_in_a_json_file_and_an_array_in_a_jsonl_file_are_what_they_are(tmp_path: Path) -> None:
    rows = rows_of(3)
    lines = write_jsonl(tmp_path / "lines.json", rows)
    (tmp_path / "array.jsonl").write_text(json.dumps(rows), encoding="utf-8")
    assert keys_and_texts(open_source("a", lines)) == keys_and_texts(
        open_source("a", tmp_path / "array.jsonl")
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_gz_is_unpacked_once_and_has_the_same_fingerprint(tmp_path: Path, name: str) -> None:
    rows = rows_of(4)
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith("n") else "", encoding="utf-8")
    if name.endswith("l"):
        write_jsonl(path, rows)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    whole, source = open_source("rows", path), open_source("rows", packed)
    assert keys_and_texts(source) == keys_and_texts(whole)
    assert source.fingerprint() == whole.fingerprint()
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows.json.*\.gz is no whole \.gz"):
        open_source("rows", packed)


def test_several_files_are_one_source_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = rows_of(7)
    write_jsonl(tmp_path / "b.jsonl", rows[3:])
    (tmp_path / "a.json").write_text(json.dumps(rows[:3]), encoding="utf-8")
    source = open_source("rows", f"{tmp_path}/{{a.json,b.jsonl}}")
    assert [source[n].key for n in range(7)] == [row["id"] for row in rows]
    both = [open_source("rows", tmp_path / name).fingerprint() for name in ("a.json", "b.jsonl")]
    assert source.fingerprint() not in both

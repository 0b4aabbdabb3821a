"""Readers of official files: a bad record costs itself and is named, a bad file is an error that names it."""

import gzip
from pathlib import Path

import pytest

from owl2.eval.formats.records import (
    Record,
    Records,
    as_records,
    by_id,
    official,
    read_any,
    read_json,
    read_parquet,
    read_records,
    read_rows,
    read_table,
    usable,
)
from owl2.eval.task import DataFile, EvalDataError, RecordError, Skipped


def written(folder: Path, text: str | bytes, name: str = "file") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def good(records: Records) -> list[Record]:
    assert not [record for record in records if isinstance(record, Skipped)]
    return [record for record in records if isinstance(record, Record)]


def reasons(records: Records) -> list[str]:
    return [str(record) for record in records if isinstance(record, Skipped)]


def test_a_field_that_is_missing_or_no_text_names_the_record(tmp_path: Path) -> None:
    record = good(read_records(written(tmp_path, '{"a": 1}\n\n{"a": "x", "b": 2}\n')))[1]
    assert record.text("a") == "x"
    with pytest.raises(RecordError, match="file: line 3: no field 'c', only a, b"):
        record["c"]
    with pytest.raises(RecordError, match="file: line 3: b is 2, not text"):
        record.text("b")
    with pytest.raises(RecordError, match="line 3: a is 'x', not one of y, z"):
        record.one_of("a", ("y", "z"))


@pytest.mark.parametrize(
    ("fields", "method", "message"),
    [
        ({"a": True}, "id", "a is True, not text"),
        ({"a": 1.5}, "id", "a is 1.5, not text"),
        ({"a": "1"}, "whole", "a is '1', expected a whole number"),
        ({"a": False}, "whole", "a is False, expected a whole number"),
        ({"a": []}, "texts", r"a is \[\], expected a list of text"),
        ({"a": ["x", 1]}, "texts", "expected a list of text"),
        ({"a": ["x", "\udc00"]}, "texts", "a has half a surrogate pair"),
        ({"a": float("nan")}, "text", "a is nan, not text"),
        ({"a": "\ud83d alone"}, "text", "a has half a surrogate pair"),
    ],
)
def test_a_value_of_the_wrong_type_is_never_converted_in_silence(
    fields: dict[str, object], method: str, message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        getattr(Record("here", fields), method)("a")
    assert Record("here", {"a": 7}).id("a") == Record("here", {"a": "7"}).id("a") == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"file: not JSON \("),
        ('{"a": "ä"}'.encode("latin-1"), r"file: not UTF-8 text .* at byte 7"),
        ("[" * 100_000, r"file: not JSON \("),
        ("{}", "file: expected a list of records, found dict"),
    ],
)
def test_json_that_is_not_a_list_of_objects_is_an_error(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(EvalDataError, match=message):
        as_records(read_json(file), file)


def test_a_row_that_is_no_object_costs_itself_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, '[1, {"a": 2}, null, {"a": 4}]'))
    assert [reason.partition("file: ")[2] for reason in reasons(records)] == [
        "record 1: int, expected an object",
        "record 3: NoneType, expected an object",
    ]
    assert [(r.number, r["a"]) for r in records if isinstance(r, Record)] == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 2', "line 2: not JSON"),
        ("nonsense", "line 2: not JSON"),
        ("[2]", "line 2: holds a list, expected an object"),
        ('{"a":' * 100_000, "line 2: not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_costs_itself(tmp_path: Path, line: str, reason: str) -> None:
    records = read_records(written(tmp_path, f'{{"a": 1}}\n{line}\n{{"a": 3}}\n'))
    (skipped,) = reasons(records)
    assert reason in skipped
    assert [(r.number, r["a"]) for r in records if isinstance(r, Record)] == [(0, 1), (2, 3)]


def test_a_file_no_line_of_which_can_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvalDataError, match=r"file: neither a JSON array nor JSON lines; .*line 1: not JSON"):
        read_records(written(tmp_path, "<!DOCTYPE html>\n<title>404</title>\n"))


ROWS = [{"a": "first"}, {"a": "second"}]


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": "first"}\n{"a": "second"}\n',
        b'{"a": "first"}\n{"a": "second"}',
        b'{"a": "first"}\r\n{"a": "second"}\r\n',
        b'\xef\xbb\xbf{"a": "first"}\n\n{"a": "second"}\n\n',
        b'\xef\xbb\xbf[{"a": "first"},\r\n{"a": "second"}]\r\n',
        b'\n  [\n{"a": "first"},{"a": "second"}\n]\n',
        gzip.compress(b'{"a": "first"}\n{"a": "second"}', mtime=0),
        gzip.compress(b'\xef\xbb\xbf[{"a": "first"}, {"a": "second"}]', mtime=0),
    ],
)
def test_bom_line_ends_compression_and_arrays_make_no_difference(tmp_path: Path, content: bytes) -> None:
    file = written(tmp_path, content)
    for read in (read_records, read_any):
        found = read(file)
        assert isinstance(found, list)
        assert [dict(record.fields) for record in good(found)] == ROWS


def test_one_object_is_read_as_an_object_or_as_a_single_line(tmp_path: Path) -> None:
    file = written(tmp_path, '{"a":\n1}\n')
    assert read_any(file) == {"a": 1}
    single = written(tmp_path, '{"a": 1}\n')
    assert [dict(record.fields) for record in good(read_records(single))] == [{"a": 1}]


def test_a_compressed_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"a": "first"}\n' * 50, mtime=0)
    with pytest.raises(EvalDataError, match="file: cannot be read"):
        read_records(written(tmp_path, whole[: len(whole) // 2]))


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path) -> None:
    assert good(read_records(written(tmp_path, '\ufeff{"a": 1}')))[0]["a"] == 1


def test_cells_stay_text_and_keep_quotes_tabs_and_strange_line_separators(tmp_path: Path) -> None:
    table = 'a\tb\n"x\ty"\tNone\n"say ""hi""\nthere"\t1\nu\u2028v\t\n'
    records = good(read_table(written(tmp_path, table)))
    assert [(record["a"], record["b"]) for record in records] == [
        ("x\ty", "None"),
        ('say "hi"\nthere', "1"),
        ("u\u2028v", ""),
    ]


def test_quotes_are_characters_where_a_file_has_a_row_a_line(tmp_path: Path) -> None:
    table = 'a\tb\r\nsay "hi\t1\r\n"\t2\r\n'
    records = good(read_table(written(tmp_path, table), quoted=False))
    assert [(record["a"], record["b"]) for record in records] == [('say "hi', "1"), ('"', "2")]


def test_a_row_with_another_number_of_cells_costs_itself(tmp_path: Path) -> None:
    records = read_table(written(tmp_path, "a\tb\n1\t2\n3\n4\t5\t6\n7\t8\n"))
    assert [reason.partition("file: ")[2] for reason in reasons(records)] == [
        "row 2: 1 cells, the header has 2",
        "row 3: 3 cells, the header has 2",
    ]
    assert [record["a"] for record in records if isinstance(record, Record)] == ["1", "7"]


def test_a_quote_that_never_closes_is_an_error_and_does_not_swallow_the_file(tmp_path: Path) -> None:
    with pytest.raises(EvalDataError, match="file: line 3: unexpected end of data"):
        read_rows(written(tmp_path, 'a,b\n"c,d\ne,f\n'))


def test_a_file_that_is_no_parquet_is_an_error_that_names_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(EvalDataError, match=r"file: not a parquet file .*download it again"):
        read_parquet([written(tmp_path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")])
    with pytest.raises(EvalDataError, match="no parquet files"):
        read_parquet([])


def test_what_cannot_be_made_of_a_record_is_skipped_in_its_place() -> None:
    records = [Record("r1", {"a": "x"}), Skipped("r2", "torn"), Record("r3", {}), Record("r4", {"a": "y"})]
    made = list(usable(records, lambda record: record.text("a")))
    assert [str(one) for one in made] == ["x", "r2: torn", "r3: no field 'a', only ", "y"]


def test_records_are_found_by_their_id_and_a_second_one_of_an_id_is_skipped() -> None:
    records = [Record("r1", {"id": 1}), Record("r2", {"id": "1"}), Record("r3", {}), Record("r4", {"id": 2})]
    found, skipped = by_id(records, "id")
    assert {name: record.where for name, record in found.items()} == {"1": "r1", "2": "r4"}
    assert [str(one) for one in skipped] == ["r2: id 1 again, after r1", "r3: no field 'id', only "]


def test_a_file_that_replaces_another_is_found_after_it(tmp_path: Path) -> None:
    files = (DataFile("a", "there"), DataFile("b", "there", is_required=False, instead_of="a"))
    assert official({"b": tmp_path}, files, "a") == tmp_path
    assert official({"b": tmp_path, "a": tmp_path / "a"}, files, "a") == tmp_path / "a"

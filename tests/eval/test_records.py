"""Readers of official files name file and record when they fail; means carry their items' shares."""

from pathlib import Path

import pytest

from owl2.eval.formats.records import (
    as_records,
    base64_image,
    folder_images,
    official,
    read_json,
    read_jsonl,
    read_rows,
    read_tsv,
)
from owl2.eval.scoring.averages import mean, mean_by_group, mean_of_groups
from owl2.eval.task import Answer, DataFile, DataMissing, EvalDataError, Item


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "file"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_field_that_is_missing_or_no_text_names_the_record(tmp_path: Path) -> None:
    record = read_jsonl(written(tmp_path, '{"a": 1}\n\n{"a": "x", "b": 2}\n'))[1]
    assert record.text("a") == "x"
    with pytest.raises(EvalDataError, match="file: line 3: no field 'c', only a, b"):
        record["c"]
    with pytest.raises(EvalDataError, match="file: line 3: b is 2, not text"):
        record.text("b")
    with pytest.raises(EvalDataError, match="line 3: a is 'x', not one of y, z"):
        record.one_of("a", ("y", "z"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"file: not JSON \("),
        ('{"a": "ä"}'.encode("latin-1"), r"file: not UTF-8 text .* at byte 7"),
        ("{}", "file: expected a list of records, found dict"),
        ("[1]", "file: record 1 is int, expected an object"),
    ],
)
def test_json_that_is_not_a_list_of_objects_is_an_error(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(EvalDataError, match=message):
        as_records(read_json(file), file)


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path) -> None:
    assert read_jsonl(written(tmp_path, '\ufeff{"a": 1}'))[0]["a"] == 1


def test_cells_stay_text_and_keep_quotes_tabs_and_strange_line_separators(tmp_path: Path) -> None:
    table = 'a\tb\n"x\ty"\tNone\n"say ""hi""\nthere"\t1\nu\u2028v\t\n'
    records = read_tsv(written(tmp_path, table))
    assert [(record["a"], record["b"]) for record in records] == [
        ("x\ty", "None"),
        ('say "hi"\nthere', "1"),
        ("u\u2028v", ""),
    ]


def test_a_quote_that_never_closes_is_an_error_and_does_not_swallow_the_file(tmp_path: Path) -> None:
    with pytest.raises(EvalDataError, match="file: line 3: unexpected end of data"):
        read_rows(written(tmp_path, 'a,b\n"c,d\ne,f\n'))


def test_a_file_that_stands_instead_of_another_is_found_after_it(tmp_path: Path) -> None:
    files = (DataFile("a", "there"), DataFile("b", "there", is_required=False, instead_of="a"))
    assert official({"b": tmp_path}, files, "a") == [tmp_path]
    assert official({"b": tmp_path, "a": tmp_path / "a"}, files, "a") == [tmp_path / "a", tmp_path]
    assert official({}, files, "a") == []


def test_images_are_closed_until_needed_and_counted_before(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="t: missing images"):
        folder_images("t", tmp_path, "images", ["a"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a").write_bytes(b"not an image")
    images = folder_images("t", tmp_path, "images", ["a", "a"])
    assert images["a"].read() == b"not an image"
    with pytest.raises(EvalDataError, match=r"t: 2 of 3 images are not in .*images, the first is b; unpack"):
        folder_images("t", tmp_path, "images", ["a", "b", "c", "b"])


def test_an_image_in_a_table_is_decoded_when_it_is_read() -> None:
    assert base64_image("name", "aGk=").read() == b"hi"


def asked(*groups: str) -> list[Answer]:
    return [
        Answer(Item(str(n), "?", category={"kind": group} if group else {}), "", None)
        for n, group in enumerate(groups)
    ]


def test_the_mean_of_groups_weighs_groups_and_its_shares_average_to_it() -> None:
    answers = asked("a", "b", "b", "b")
    values = [1.0, 0.0, 0.0, 1.0]
    score = mean_of_groups("kind", "m", answers, values)
    assert score.value == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert score.scale * sum(score.values) / 4 == pytest.approx(score.value)
    assert mean("m", answers, values).value == 50.0


def test_groups_keep_the_order_of_the_items_and_items_without_one_are_in_none() -> None:
    scores = mean_by_group("kind", "m", asked("b", "", "a", "b"), [1, 1, 0, 0], paper_ids={"a": "1/0"})
    assert [(s.group, s.value, s.n, s.paper_id) for s in scores] == [("b", 50.0, 2, ""), ("a", 0.0, 1, "1/0")]


def test_a_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="m: 0 values for 0 answers"):
        mean("m", [], [])

"""Files of one JSON object a line: whole lines are read, a torn one is left out and cut."""

from pathlib import Path

import pytest

from owl2.jsonl import JsonlError, cut_torn_line, read_jsonl, to_line


@pytest.mark.parametrize("torn", [b"", b'{"a": ', b'{"a": "' + b"x" * 200_000])
@pytest.mark.parametrize("whole", [b"", b'{"a": 1}\n', b'{"a": 1}\n' * 10_000])
def test_a_torn_line_is_left_out_and_cut_and_nothing_else(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole + torn)
    assert len(list(read_jsonl(path, ours=True))) == whole.count(b"\n")
    cut_torn_line(path)
    assert path.read_bytes() == whole


def test_a_last_line_without_line_break_is_whole_in_other_peoples_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"\xff", b"[" * 100_000])
def test_a_line_that_is_no_object_is_an_error_with_file_and_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(JsonlError, match=r"rows\.jsonl:2: "):
        list(read_jsonl(path))


def test_half_a_surrogate_pair_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(to_line({"a": "\ud83d ü"}))
    assert list(read_jsonl(path)) == [(1, {"a": "\ud83d ü"})]

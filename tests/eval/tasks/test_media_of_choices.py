"""The script that draws the miniatures writes what is committed."""

from pathlib import Path

import pytest

from tests.eval.tasks.miniature import DATA

pytest.importorskip("av")
from tests.eval.tasks.media_of_choices import CLIPS, IMAGES, write_media


def test_the_script_writes_files_that_are_all_committed(tmp_path: Path) -> None:
    write_media(tmp_path)
    written = {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()}
    assert {Path(name) for name in (*IMAGES, *CLIPS)} <= written
    assert [str(name) for name in written if not (DATA / name).is_file()] == []


def test_the_tables_it_writes_are_those_committed_but_for_the_images(tmp_path: Path) -> None:
    write_media(tmp_path)
    for name in (
        "mmbench/mmbench_dev_20230712.tsv",
        "mmbench/MMBench_TEST_EN.tsv",
        "q_bench/Q-Bench1_TEST.tsv",
    ):
        written, committed = (without_base64((folder / name).read_text()) for folder in (tmp_path, DATA))
        assert written == committed


def without_base64(table: str) -> list[list[str]]:
    """Cells of up to 64 characters: how Pillow compresses may change."""
    return [[cell for cell in line.split("\t") if len(cell) <= 64] for line in table.split("\n")]

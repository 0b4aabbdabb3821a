"""Conversion on several machines: each a share, killed or not; joined, the files are those of one machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from owl2.__main__ import main
from owl2.data.recipes import convert as conversion
from owl2.data.recipes.convert import ROWS_PER_JOB, Share, convert, convert_share, join
from owl2.data.recipes.recipe import Recipe, find_recipes
from owl2.data.sample import DataError
from tests.data.recipes.official import write_shards
from tests.data.recipes.test_convert import Numbers


def content(folder: Path) -> dict[str, bytes]:
    """The files that a user sees, with paths of the folder itself left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".parts" not in str(path))
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"OUT")
        for path in files
    }


def corpora(tmp_path: Path) -> list[Recipe]:
    write_shards(tmp_path)
    return [Numbers(), *find_recipes("cc3m")]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_shares_in_any_order_joined_are_the_files_of_one_machine(tmp_path: Path, count: int) -> None:
    for recipe in corpora(tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        report = convert(recipe, tmp_path, whole)
        for number in reversed(range(1, count + 1)):
            convert_share(recipe, tmp_path, parts, Share(number, count), workers=number % 2 + 1)
            assert not (parts / f"{recipe.name}.report.json").exists()
        assert join(recipe, tmp_path, parts) == report
        assert content(parts) == content(whole)


def test_a_missing_part_is_an_error_that_names_its_share(tmp_path: Path) -> None:
    for recipe in corpora(tmp_path):
        out = tmp_path / "out"
        with pytest.raises(DataError, match="no share has been converted into"):
            join(recipe, tmp_path, out)
        convert_share(recipe, tmp_path, out, Share(1, 2))
        with pytest.raises(DataError, match=r"of \d parts are missing, the first 0+1; run --shard 2/2 again"):
            join(recipe, tmp_path, out)
        convert_share(recipe, tmp_path, out, Share(2, 2))
        made = (
            out / "cc3m" / "00001.tar" if recipe.name == "cc3m" else out / ".sharegpt.parts" / "000001.jsonl"
        )
        made.unlink()
        with pytest.raises(
            DataError, match=r"1 of \d parts are missing, the first 0+1; run --shard 2/2 again"
        ):
            join(recipe, tmp_path, out)
        convert_share(recipe, tmp_path, out, Share(2, 2))
        join(recipe, tmp_path, out)


def test_shares_of_different_files_are_not_joined(tmp_path: Path) -> None:
    (recipe,) = find_recipes("cc3m")
    write_shards(tmp_path)
    convert_share(recipe, tmp_path, tmp_path / "out", Share(1, 2))
    os.utime(tmp_path / "00000.tar", ns=(1, 1))
    convert_share(recipe, tmp_path, tmp_path / "out", Share(2, 2))
    with pytest.raises(DataError, match="the shares 1/2 and 2/2 were made from different files"):
        join(recipe, tmp_path, tmp_path / "out")
    convert_share(recipe, tmp_path, tmp_path / "out", Share(1, 2))
    assert join(recipe, tmp_path, tmp_path / "out").num_samples == 6


KILLED = f"""
import sys, time
from pathlib import Path
from owl2.data.recipes import convert as conversion
from owl2.data.recipes.convert import Share
from tests.data.recipes.test_convert import Numbers
check = conversion.check_row
def slow(row, root):
    if int(row["id"]) == {2 * ROWS_PER_JOB + 500}:
        print("in the middle", flush=True)
        time.sleep(60)
    return check(row, root)
conversion.check_row = slow
conversion.convert_share(Numbers(), Path(sys.argv[1]), Path(sys.argv[1]) / "out", Share(1, 2))
"""


def test_a_share_that_was_killed_is_run_again_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    convert_share(Numbers(), tmp_path, tmp_path / "out", Share(2, 2))
    with pytest.raises(DataError, match=r"1 of 4 parts are missing, the first 000002; run --shard 1/2 again"):
        join(Numbers(), tmp_path, tmp_path / "out")
    checked: list[str] = []
    check_row = conversion.check_row
    monkeypatch.setattr(
        conversion, "check_row", lambda row, root: checked.append(row["id"]) or check_row(row, root)
    )
    convert_share(Numbers(), tmp_path, tmp_path / "out", Share(1, 2))
    assert checked[0] == str(2 * ROWS_PER_JOB), "the first part was there"
    join(Numbers(), tmp_path, tmp_path / "out")
    convert(Numbers(), tmp_path, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_the_command_converts_shares_and_joins_them(
    official: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "convert", "gqa,coco", "--source", str(official), "--out", str(tmp_path)]
    for shard in ("1/2", "2/2"):
        main([*words, "--shard", shard])
        assert f"coco: share {shard} is converted" in capsys.readouterr().out
    main([*words, "--join"])
    assert "Written to" in capsys.readouterr().out
    for name in ("gqa", "coco"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (converted / f"{name}.jsonl").read_bytes()
    assert json.loads((tmp_path / "gqa.report.json").read_text())["num_samples"] == 2


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/", "-1/2"])
def test_a_share_that_cannot_be_is_a_usage_error(
    tmp_path: Path, shard: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "convert", "gqa", "--source", ".", "--out", str(tmp_path), f"--shard={shard}"])
    assert "must be 1/N to N/N, as in 3/8" in capsys.readouterr().err

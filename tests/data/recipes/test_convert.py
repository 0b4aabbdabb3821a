"""Conversion as a whole: the same for any number of processes, resumed where it stopped, nothing lost."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl2.__main__ import main
from owl2.data.recipes import convert as conversion
from owl2.data.recipes.convert import ROWS_PER_JOB, convert
from owl2.data.recipes.recipe import (
    ConversationRecipe,
    Files,
    FilesMissing,
    Rejected,
    Row,
    all_recipes,
    find_recipes,
)
from owl2.data.recipes.wording import conversation
from owl2.data.sample import DataError
from tests.data.recipes.official import write_image, write_official


class Numbers(ConversationRecipe):
    """A corpus of text alone that needs no files: three parts and a bit."""

    name = "sharegpt"
    title = "Numbers"
    stage = "instruct"
    licence = "none"
    size = "some"
    weight = 1
    files = ()

    def rows(self, files: Files) -> Iterator[Row | Rejected]:
        for number in range(3 * ROWS_PER_JOB + 7):
            if number % 1000 == 999:
                yield Rejected(str(number), "round")
            else:
                yield conversation(str(number), None, [(f"What is {number}?", "A number.")])


def test_the_result_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    alone = convert(Numbers(), tmp_path, tmp_path / "alone", workers=1)
    parallel = convert(Numbers(), tmp_path, tmp_path / "parallel", workers=3)
    assert alone == parallel
    assert (alone.num_samples, alone.num_bad) == (3 * ROWS_PER_JOB + 7 - 6, 6)
    for name in ("sharegpt.jsonl", "sharegpt.bad.jsonl", "sharegpt.report.json"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "parallel" / name).read_bytes()


def test_a_stopped_conversion_goes_on_with_the_parts_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop_at_the_second(part: conversion.JobResult, num_parts: int | None) -> None:
        if part.fingerprint not in seen and seen:
            raise Stop
        seen.add(part.fingerprint)

    seen: set[str] = set()
    with pytest.raises(Stop):
        convert(Numbers(), tmp_path, tmp_path / "out", on_part=stop_at_the_second)
    assert not (tmp_path / "out" / "sharegpt.jsonl").exists(), "whole or absent"
    checked = []
    check_row = conversion.check_row
    monkeypatch.setattr(
        conversion, "check_row", lambda row, root: checked.append(row["id"]) or check_row(row, root)
    )
    report = convert(Numbers(), tmp_path, tmp_path / "out")
    assert checked[0] == str(2 * ROWS_PER_JOB), "the first two parts were there"
    assert report.num_samples == 3 * ROWS_PER_JOB + 1
    lines = (tmp_path / "out" / "sharegpt.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [
        str(n) for n in range(3 * ROWS_PER_JOB + 7) if n % 1000 != 999
    ]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_converting_again_gives_the_same_bytes(official: Path, converted: Path, tmp_path: Path) -> None:
    for name in ("aokvqa", "coco", "textcaps", "refcoco", "visual_genome"):
        (recipe,) = find_recipes(name)
        convert(recipe, official, tmp_path)
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (converted / f"{name}.jsonl").read_bytes()


def test_what_is_left_out_is_counted_by_reason_and_listed(tmp_path: Path) -> None:
    root = write_official(tmp_path)
    folder = root / "coco" / "train2014"
    (folder / "COCO_train2014_000000000009.jpg").unlink()
    (folder / "COCO_train2014_000000000025.jpg").write_bytes(b"<html>not found</html>")
    (recipe,) = find_recipes("coco")
    report = convert(recipe, root, tmp_path / "out")
    assert report.bad == {"image is missing": 1, "not an image": 1}
    bad = [json.loads(line) for line in (tmp_path / "out" / "coco.bad.jsonl").read_text().splitlines()]
    assert [(row["source"], row["key"], row["reason"]) for row in bad] == [
        ("coco", "9", "image is missing"),
        ("coco", "25", "not an image"),
    ]


def test_broken_conversations_are_left_out_with_their_reasons(official: Path, converted: Path) -> None:
    report = json.loads((converted / "sharegpt.report.json").read_text())
    assert report["bad"] == {
        "no question with an answer": 1,
        "turns do not alternate": 1,
        "the text holds an image mark": 1,
    }
    assert json.loads((converted / "slimorca.report.json").read_text())["bad"] == {
        "not a record of the official format": 1
    }


def test_a_corpus_without_any_usable_sample_is_an_error(tmp_path: Path) -> None:
    root = write_official(tmp_path)
    for path in (root / "textcaps" / "train_images").iterdir():
        path.write_bytes(b"")
    (recipe,) = find_recipes("textcaps")
    with pytest.raises(DataError, match="none of 2 records could be used"):
        convert(recipe, root, tmp_path / "out")


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    (recipe,) = find_recipes("vqav2")
    (tmp_path / "train2014").mkdir()
    with pytest.raises(FilesMissing, match="2 of its files") as error:
        convert(recipe, tmp_path, tmp_path / "out")
    assert "v2_mscoco_train2014_annotations.json  from visualqa.org" in str(error.value)
    assert "train2014  from" not in str(error.value)


def test_a_folder_of_one_corpus_alone_is_a_source_too(official: Path, tmp_path: Path) -> None:
    (recipe,) = find_recipes("gqa")
    assert convert(recipe, official / "gqa", tmp_path).num_samples == 2
    assert '"image": "images/2354786.jpg"' in (tmp_path / "gqa.jsonl").read_text()


def test_a_file_that_is_no_json_is_named(official: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "train_balanced_questions.json").write_text('{"1": {"question": "cut')
    (recipe,) = find_recipes("gqa")
    with pytest.raises(DataError, match=r"train_balanced_questions\.json cannot be read as JSON"):
        convert(recipe, tmp_path, tmp_path / "out")


def test_a_pickle_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    root = write_official(tmp_path)
    (root / "refcoco" / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Path("x")], protocol=2))
    (recipe,) = find_recipes("refcoco")
    with pytest.raises(DataError, match="asks for pathlib"):
        convert(recipe, root, tmp_path / "out")


def test_names_are_a_recipe_several_or_a_stage() -> None:
    assert [recipe.name for recipe in find_recipes("gqa,coco")] == ["gqa", "coco"]
    assert len(find_recipes("instruct")) == 12
    in_paper = [recipe for recipe in all_recipes().values() if recipe.in_paper]
    assert len(find_recipes("pretrain,instruct")) == len(in_paper) == 18
    with pytest.raises(DataError, match="no recipe 'vqa2'; nearest is 'vqav2'"):
        find_recipes("vqa2")


def test_the_list_shows_licence_origin_and_what_is_missing(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "list"])
    shown = capsys.readouterr().out
    for recipe in all_recipes().values():
        assert recipe.name in shown
        assert recipe.licence in shown
        assert all(file.path in shown for file in recipe().at(tmp_path).files)
    write_image(tmp_path / "train2014" / "1.jpg")
    main(["data", "list", "--source", str(tmp_path)])
    vqav2 = capsys.readouterr().out.split("vqav2 ")[1]
    assert "missing v2_OpenEnded_mscoco_train2014_questions.json" in vqav2
    assert "✓ train2014" in vqav2
    main(["data", "list", "--source", str(official)])
    of_paper = capsys.readouterr().out.split("\n\n")
    assert not [shown for shown in of_paper if "missing" in shown and "% of the samples" in shown]


def test_a_stage_with_missing_corpora_converts_the_others_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_official(tmp_path / "in")
    (tmp_path / "in" / "gqa" / "train_balanced_questions.json").unlink()
    words = ["data", "convert", "gqa,coco", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="1"):
        main(words)
    output = capsys.readouterr()
    assert "gqa: 1 of its files" in output.err
    assert "coco" in output.out
    assert (tmp_path / "out" / "coco.jsonl").exists()


def test_a_process_that_is_killed_leaves_no_half_file(tmp_path: Path) -> None:
    """A file under its final name is whole; the next run replaces any other."""
    process = os.fork()
    if not process:
        convert(Numbers(), tmp_path, tmp_path / "out", on_part=lambda part, num_parts: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert [path.name for path in (tmp_path / "out").rglob("*.tmp")] == []
    assert convert(Numbers(), tmp_path, tmp_path / "out").num_samples == 3 * ROWS_PER_JOB + 1

"""The student's way: twenty own images, and the commands of docs/finetune.md, word for word."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from owl2.__main__ import main
from owl2.train.metrics import read_metrics
from owl2.train.summary import Summary
from tests.data.small import turns, write_jsonl

PAGE = Path(__file__).parents[2] / "docs" / "finetune.md"
COLOURS = {
    "red": (210, 30, 30),
    "green": (30, 160, 60),
    "left": (40, 60, 210),
    "right": (240, 210, 40),
    "no": (140, 40, 170),
}
SHAPES = ("owl", "cup", "window", "branch")
QUESTION = "what is in the picture?"


def commands() -> list[list[str]]:
    """The words of each `owl2` command of the page, in its order."""
    blocks = re.findall(
        r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [shlex.split(line.removeprefix("$ owl2 ")) for block in blocks for line in block.splitlines()]


def write_images(folder: Path) -> None:
    """Twenty images of coloured shapes, and a line with one question for each."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
        image = Image.new("RGB", (80, 60), (235, 235, 235))
        draw = ImageDraw.Draw(image)
        x, y, size = 20 + number, 15 + number % 7, 18
        corners = {
            3: [(x, y), (x + size, y), (x, y + size)],
            4: [(x, y), (x + size, y), (x + size, y + size), (x, y + size)],
        }
        if shape in ("owl", "cup"):
            draw.polygon(corners[3 + (shape == "cup")], fill=COLOURS[colour])
        elif shape == "window":
            draw.ellipse((x, y, x + size, y + size), fill=COLOURS[colour])
        else:
            draw.line((x, y, x + size, y + size), fill=COLOURS[colour], width=5)
        name = f"images/{number + 1}.png"
        image.save(folder / name)
        rows.append({"image": name, "conversations": turns(f"<image>\n{QUESTION}", f"{colour} {shape}")})
    write_jsonl(folder / "mine.jsonl", rows)


def test_look_train_and_ask_as_the_page_says(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "runs/demo/checkpoint")
    write_images(tmp_path / "mine")
    look, train, ask = commands()[:3]
    assert [words[0] for words in (look, train, ask)] == ["data", "train", "chat"]
    main(look)
    assert "20" in capsys.readouterr().out
    assert "what is in the picture?" in re.sub("<.*?>", "", Path("inspect.html").read_text())
    main([*train, "--dry_run"])
    assert "45 steps of 8 samples" in (said := capsys.readouterr().out)
    assert " GiB for model and samples of 1 process(es)" in said
    main(train)
    run = Path("runs/finetune")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(run / "checkpoint")
    assert "20 epochs of 18 samples are 45 steps of 8 samples" in said
    summary = Summary.read(run)
    assert summary is not None
    assert [(corpus.samples, corpus.held_out) for corpus in summary.corpora] == [(18, 2)]
    rows, held_out = read_metrics(run), read_metrics(run, "validation.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert held_out[-1]["loss/mine"] < held_out[0]["loss/mine"]
    assert [row["step"] for row in held_out][:3] == [0, 4, 8], "before it and ten times"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * len(held_out)
    assert (run / "report.html").exists() or "matplotlib" in capsys.readouterr().err
    main(ask)
    answer = capsys.readouterr().out.split()
    assert answer
    assert {*answer} <= {*COLOURS, *SHAPES}

"""`--overfit`: a few samples come back word for word, whatever their form; a mistake keeps them away."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from owl2.__main__ import main
from owl2.data import loader
from owl2.model.layout import targets_of
from owl2.train.config import DataConfig, LoraConfig, OptimConfig, SourceConfig, TrainConfig, TrainConfigError
from owl2.train.overfit import OverfitError, overfit
from owl2.train.rules import Rule
from tests.data.small import turns, write_jsonl
from tests.train.tiny import stage

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "two": (0, 0, 200)}
QUESTION = "what is in the picture?"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, colour in COLOURS.items():
        Image.new("RGB", (30, 30), colour).save(folder / f"{name}.png")
        Image.new("RGB", (30, 30), colour).save(folder / f"{name}.gif", save_all=True)
    return folder


def small(run: Path, checkpoint: Path, path: Path, turns: Any = "together", **changes: Any) -> TrainConfig:
    """A stage over one source at a rate that a tiny model learns at; `changes` of it and of its data."""
    data = {
        name: changes.pop(name)
        for name in ("pack_tokens", "template", "max_tokens", "targets")
        if name in changes
    }
    source = SourceConfig(name="mine", path=path, turns=turns)
    mixture = DataConfig(sources=[source], **{"max_tokens": 512, "num_frames": 2, **data})
    optim = OptimConfig(lr=1e-2, weight_decay=0.0, warmup_steps=0)
    return stage(run, checkpoint, path.parent, **{"data": mixture, "optim": optim, **changes})


def try_overfit(config: TrainConfig, num_samples: int = 3) -> str:
    """What is printed."""
    console = Console(file=io.StringIO(), width=200)
    try:
        overfit(config, num_samples, console)
    finally:
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        print(text)
    return text


def test_conversations_come_back_word_for_word_and_leave_the_run_alone(
    checkpoint: Path, corpora: Path, tmp_path: Path
) -> None:
    text = try_overfit(small(tmp_path / "run", checkpoint, corpora / "chat.jsonl"), 4)
    assert "all 8 answers came back word for word after" in text
    assert not (tmp_path / "run").exists()
    assert [file.name for file in (tmp_path / "run-overfit").iterdir()] == ["samples.jsonl"]


def rows_of(form: str) -> list[dict[str, Any]]:
    names = list(COLOURS)
    if form == "two images":
        pairs = zip(names, [*names[1:], names[0]], strict=True)
        return [
            {"images": [f"{a}.png", f"{b}.png"], "conversations": turns("<image><image>\n?", f"{a} and {b}")}
            for a, b in pairs
        ]
    if form == "video":
        return [
            {"video": f"{name}.gif", "conversations": turns(f"<video>\n{QUESTION}", name)} for name in names
        ]
    if form == "chinese":
        said = dict(zip(names, ("红色的圆。", "绿色，没有“圆”！", "两个"), strict=True))
        return [
            {"image": f"{n}.png", "conversations": turns("<image>\n图里有什么？", said[n])} for n in names
        ]
    return [
        {
            "image": f"{n}.png",
            "conversations": turns(f"<image>\n{QUESTION}", n, "is it red?", ["no", "yes"][n == "red"]),
        }
        for n in names
    ]


LORA = {
    "lora": LoraConfig(rank=16, alpha=32),
    "rules": [Rule(match="*.lora_*"), Rule(match="model.visual_abstractor.*"), Rule(match="*", frozen=True)],
}


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("two images", {}),
        ("video", {}),
        ("chinese", {}),
        ("turns", {"turns": "apart"}),
        ("turns", {"pack_tokens": 512, "micro_batch_size": 1, "accumulation": 1}),
        ("turns", {"turns": "apart", "pack_tokens": 512, "micro_batch_size": 1, "accumulation": 1}),
        ("turns", {"dtype": "bfloat16"}),
        ("turns", {"targets": "last"}),
        ("turns", LORA),
        ("turns", {"template": "vicuna_v1"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_every_form_of_sample_comes_back(
    form: str, changes: dict[str, Any], checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    if "lora" in changes:
        pytest.importorskip("peft")
    path = write_jsonl(images / f"{form}.jsonl", rows_of(form))
    text = try_overfit(small(tmp_path / "run", checkpoint, path, **changes))
    assert "answers came back word for word" in text


def test_a_label_that_is_one_token_late_keeps_every_answer_away(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(labels: Any, layout: Any) -> Any:
        return targets_of(labels.roll(1), layout)

    monkeypatch.setattr(loader, "targets_of", late)
    monkeypatch.setattr("owl2.train.overfit.STEPS", 60)
    path = write_jsonl(images / "late.jsonl", rows_of("turns"))
    with pytest.raises(OverfitError, match=r"6 of 6 answers did not come back word for word after \d+ steps"):
        try_overfit(small(tmp_path / "run", checkpoint, path))


def test_two_answers_to_one_question_are_named(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl2.train.overfit.STEPS", 40)
    rows = [
        {"image": "red.png", "conversations": turns(f"<image>\n{QUESTION}", answer)}
        for answer in ("red", "green")
    ]
    path = write_jsonl(images / "two.jsonl", rows)
    with pytest.raises(OverfitError, match=r"1 of 2 answers did not come back|2 of 2 answers did not"):
        try_overfit(small(tmp_path / "run", checkpoint, path), 2)
    rows = [json.loads(line) for line in (tmp_path / "run-overfit/samples.jsonl").read_text().splitlines()]
    other = {"mine:two.jsonl:1": "mine:two.jsonl:2", "mine:two.jsonl:2": "mine:two.jsonl:1"}
    assert {row["key"]: row["note"] for row in rows} == {
        key: f"the same question has another answer in {name}" for key, name in other.items()
    }


def test_a_sample_that_cannot_be_used_is_shown_and_the_others_come_back_all_the_same(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*rows_of("turns"), {"image": "gone.png", "conversations": turns("<image>", "red")}]
    path = write_jsonl(images / "gone.jsonl", rows)
    with pytest.raises(OverfitError, match=r"^1 sample.s. cannot be used: repair them"):
        try_overfit(small(tmp_path / "run", checkpoint, path), 9)
    out = capsys.readouterr().out
    assert "there are only 4 samples; all of them are used" in out
    assert "cannot be used: mine:gone.jsonl:4: FileNotFoundError" in out
    write_jsonl(path, rows[3:])
    with pytest.raises(OverfitError, match=r"none of 1 samples can be used; the first, mine:gone.jsonl:1"):
        try_overfit(small(tmp_path / "run", checkpoint, path), 9)


def test_a_rate_that_learns_nothing_is_what_the_message_speaks_of(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl2.train.overfit.STEPS", 20)
    slow = OptimConfig(lr=1e-6, min_lr=1e-6, warmup_steps=0)
    with pytest.raises(OverfitError, match=r"loss is still \d.*raise --optim.lr \(now 1e-06\)"):
        try_overfit(small(tmp_path / "run", checkpoint, corpora / "chat.jsonl", optim=slow))


def test_several_processes_and_an_objective_without_answers_are_refused(
    checkpoint: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tmp_path / "run", checkpoint, corpora / "captions", objective="bag_of_words")
    with pytest.raises(TrainConfigError, match="--overfit needs objective next_token"):
        overfit(config, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainConfigError, match="--overfit runs in one process, and 2 were started"):
        overfit(config, 2)


def test_the_command_exits_with_0_only_if_every_answer_came_back(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_jsonl(images / "command.jsonl", rows_of("turns"))
    words = [
        "train",
        "--run",
        str(tmp_path / "run"),
        "--model",
        str(checkpoint),
        "--steps",
        "5",
        "--overfit",
        "2",
    ]
    words += ["--data.max_tokens", "512", "--rules", '[{match: "*"}]', "--global_batch_size", "1"]
    words += [f"--data.sources=[{{name: mine, path: {path}}}]", "--optim.warmup_steps", "0"]
    main([*words, "--optim.lr", "1e-2"])
    assert "word for word" in capsys.readouterr().out
    monkeypatch.setattr("owl2.train.overfit.STEPS", 20)
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--optim.lr", "1e-6", "--optim.min_lr", "1e-6"])
    assert stopped.value.code == 1
    assert "answers did not come back word for word" in capsys.readouterr().err

"""A folder as a user has it: a tiny checkpoint, an image, a corpus, a stage, a benchmark and its answers."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from owl2.__main__ import main
from tests.eval.conftest import checkpoint  # noqa: F401  (fixture)
from tests.eval.small import write_vqa
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)


def write_stage(folder: Path) -> None:
    """A corpus of eight samples, and twenty steps over it."""
    Image.new("RGB", (30, 20), "green").save(folder / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "An owl."}]
    rows = [{"id": str(n), "image": "a.png", "conversations": turns} for n in range(8)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "run": "run",
        "model": "checkpoint",
        "data": {"max_tokens": 200, "sources": [{"name": "talk", "path": "talk.jsonl"}]},
        "rules": [{"match": "*"}],
        "optim": {"lr": 1e-3, "warmup_steps": 1},
        "steps": 20,
        "global_batch_size": 2,
        "micro_batch_size": 2,
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))


@pytest.fixture(scope="session")
def whole_desk(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:  # noqa: F811
    """What `desk` shows."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "checkpoint").symlink_to(checkpoint)
    write_stage(folder)
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "latin.yaml").write_bytes("# café\nsteps: 5\n".encode("latin-1"))
    (folder / "latin.jsonl").write_bytes('{"id": "café"}\n'.encode("latin-1") * 20)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "broken.yaml").write_text("steps: [5\nrun: x\n")
    write_vqa(folder / "bench", num_questions=4)
    words = ["--tasks", "vqav2", "--template", "owl2-2024", "--data", str(folder / "bench")]
    main(["eval", "run", str(checkpoint), *words, "--out", str(folder / "answers")])
    return folder


@pytest.fixture
def desk(whole_desk: Path, tmp_path: Path) -> Path:
    """The folder, in which new files are gone after the test."""
    for path in whole_desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path

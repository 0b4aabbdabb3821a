"""Bad input of every kind ends with exit code 1 or 2 and one line on standard error that names it."""

import shlex
from pathlib import Path

import pytest

from owl2.__main__ import main
from tests.eval.server import served

RUN = "eval run checkpoint --tasks vqav2 --template owl2-2024 --data bench --out"

BAD_INPUT = [
    # files and folders that are not there, or are something else
    ("chat nothing -m hi", 1, "nothing"),
    ("chat file -m hi", 1, "file"),
    ("chat empty -m hi", 1, "empty"),
    ("chat checkpoint --image nothing.png -m hi", 1, "nothing.png"),
    ("chat checkpoint --image empty -m hi", 1, "empty"),
    ("chat checkpoint --image broken.png -m hi", 1, "broken.png"),
    ("chat checkpoint --image file/a.png -m hi", 1, "file/a.png"),
    ("convert nothing new", 1, "nothing"),
    ("convert checkpoint file/x", 1, "file"),
    ("convert checkpoint file", 1, "file"),
    ("convert checkpoint answers", 1, "answers"),
    ("init --vision nothing --language checkpoint --out new", 1, "nothing"),
    ("init --vision checkpoint --language file --out new", 1, "checkpoint"),
    ("init --vision checkpoint --language checkpoint --out answers", 1, "answers"),
    ("train nothing.yaml", 1, "nothing.yaml: does not exist"),
    ("train tinny", 1, "the nearest is 'tiny' of"),
    ("train configs/tiny.yaml", 1, "the stage that comes with owl2 is called 'tiny'"),
    ("config show tinny", 2, "the nearest is 'tiny' of"),
    ("train empty", 1, "empty: is a folder, where a file is needed"),
    ("train file/x.yaml", 1, "file/x.yaml: a part of this path is a file"),
    ("train latin.yaml", 1, "latin.yaml is not UTF-8 (byte 0xe9 at position 5)"),
    ("train broken.yaml", 1, "broken.yaml, line 2 is not YAML"),
    ("train talk.jsonl", 1, "talk.jsonl"),
    ("train a.png", 1, "a.png is not UTF-8"),
    ("train stage.yaml --config nothing.yaml", 1, "nothing.yaml: does not exist"),
    ("train stage.yaml --model nothing", 1, "nothing"),
    ("train stage.yaml --model file", 1, "file"),
    ("train stage.yaml --run file", 1, "run file cannot be a folder that this run writes to"),
    ("train stage.yaml --run file/x", 1, "file/x"),
    ("train stage.yaml --data.sources '[{name: a, path: nothing.jsonl}]'", 1, "nothing.jsonl"),
    ("train stage.yaml --data.sources '[{name: a, path: latin.jsonl}]'", 1, "latin"),
    ("train stage.yaml --data.sources '[{name: a, path: empty}]'", 1, "empty"),
    ("train stage.yaml --data.sources []", 1, "data.sources"),
    ("plan nothing.yaml --gpus 1", 1, "nothing.yaml: does not exist"),
    ("report nothing", 1, "nothing"),
    ("report file", 1, "file"),
    ("report empty", 1, "empty"),
    ("demo --out file", 1, "file: exists already, and is not a folder"),
    ("demo --out file/x", 1, "file"),
    ("data inspect nothing.jsonl", 1, "nothing.jsonl"),
    ("data inspect file", 1, "file"),
    ("data inspect empty", 1, "empty"),
    ("data inspect talk.jsonl --out file/x.html", 1, "file/x.html"),
    ("data inspect talk.jsonl --out empty", 1, "empty: is a folder, where a file is needed"),
    ("data inspect talk.jsonl --out no/such.html", 1, "no/such.html: does not exist"),
    ("data inspect talk.jsonl --out /dev/full", 1, "/dev/full: no space left on the device"),
    ("data inspect talk.jsonl --model nothing", 1, "nothing"),
    ("data inspect talk.jsonl --model file", 1, "file"),
    ("data mixture nothing.yaml", 1, "nothing.yaml: does not exist"),
    ("data mixture latin.yaml", 1, "latin.yaml is not UTF-8"),
    ("data mixture broken.yaml", 1, "broken.yaml, line 2 is not YAML"),
    ("data mixture talk.jsonl", 1, "talk.jsonl"),
    (f"{RUN} file", 1, "file: exists already, and is not a folder"),
    (f"{RUN} file/x", 1, "file"),
    ("eval run nothing --tasks vqav2 --data bench --out new", 1, "nothing"),
    ("eval run checkpoint --tasks vqav2 --data nothing --out new", 1, "nothing"),
    ("eval run checkpoint --tasks vqav2 --data file --out new", 1, "file"),
    ("eval run checkpoint --questions nothing --out new", 1, "nothing does not exist"),
    ("eval run checkpoint --questions a.png --out new", 1, "a.png: not UTF-8 text"),
    ("eval run checkpoint --questions talk.jsonl --metric exat --out new", 1, "nearest is 'exact'"),
    ("eval run checkpoint --out new", 2, "--questions"),
    ("eval show mme --data nothing", 1, "below nothing"),
    ("eval data --include nothing.py", 1, "nothing.py: does not exist"),
    ("eval score nothing", 1, "nothing"),
    ("eval score file", 1, "file"),
    ("eval report answers --out file", 1, "file: exists already, and is not a folder"),
    ("eval report answers nothing", 1, "nothing"),
    ("eval report answers --data nothing", 1, "nothing"),
    ("eval compare answers answers --out no/such.json", 1, "no/such.json: does not exist"),
    ("eval compare answers answers --out /dev/full", 1, "/dev/full: no space left on the device"),
    ("eval export answers --out file", 1, "file"),
    ("eval export answers --out file/x", 1, "file/x"),
    ("eval judge answers --tasks vqav2 --judge_from nothing", 1, "nothing"),
    # names that do not exist
    ("chat checkpoint --device warp -m hi", 1, "warp"),
    ("chat checkpoint --device cuda:77 -m hi", 1, "cuda:77"),
    ("chat checkpoint --device meta -m hi", 1, "meta"),
    ("chat checkpoint --dtype float23 -m hi", 2, "the nearest is 'float32'"),
    ("train stage.yaml --device warp", 1, "warp"),
    ("train stage.yaml --device cuda:77", 1, "cuda:77"),
    ("train stage.yaml --dtype float23", 2, "the nearest is 'float32'"),
    ("train stage.yaml --data.template chatml", 1, "chatml"),
    ("train stage.yaml --parallel.compile warp", 1, "warp"),
    ("data inspect talk.jsonl --template chatml --model checkpoint", 1, "chatml"),
    ("data inspect talk.jsonl --augment flop", 2, "the nearest is 'flip'"),
    ("data convert gqx --source bench --out new", 1, "gqx"),
    (f"{RUN} new --device warp", 1, "warp"),
    (f"{RUN} new --template chatml", 1, "chatml"),
    ("eval run checkpoint --tasks vqqv2 --data bench --out new", 1, "vqqv2"),
    ("eval data --tasks vqqv2", 1, "vqqv2"),
    ("eval run --endpoint localhost:8000 --tasks vqav2 --data bench --out new", 1, "localhost:8000"),
    # numbers that cannot be
    ("chat checkpoint --seed -1 -m hi", 2, "--seed -1 must be at least 0"),
    (f"chat checkpoint --seed {2**64} -m hi", 2, f"--seed {2**64} must be at most"),
    ("chat checkpoint --temperature nan -m hi", 2, "--temperature must be a number, not 'nan'"),
    ("chat checkpoint --temperature -1 -m hi", 1, "temperature"),
    ("chat checkpoint --temperature inf -m hi", 1, "temperature"),
    ("chat checkpoint --top_p 1.5 -m hi", 1, "top_p"),
    ("chat checkpoint --top_k -1 -m hi", 1, "top_k"),
    ("chat checkpoint --max_new_tokens 0 -m hi", 1, "max_new_tokens"),
    ("chat checkpoint --max_new_tokens many -m hi", 2, "--max_new_tokens must be a whole number, not 'many'"),
    ("init --vision x --language y --out new --queries 0", 2, "--queries 0 must be at least 1"),
    ("init --vision x --language y --out new --seed -1", 2, "--seed -1 must be at least 0"),
    ("train stage.yaml --steps 0", 1, "steps = 0"),
    ("train stage.yaml --steps 1e4", 2, "--steps must be a whole number, not '1e4'"),
    ("train stage.yaml --optim.lr -1", 1, "optim.lr"),
    ("train stage.yaml --optim.lr nan", 2, "--optim.lr must be a number, not 'nan'"),
    ("train stage.yaml --optim.betas [0.9,1.5]", 1, "optim.betas"),
    ("train stage.yaml --optim.betas [0.9]", 2, "--optim.betas must be a list of 2"),
    ("train stage.yaml --data.num_workers -1", 1, "data.num_workers"),
    ("train stage.yaml --data.seed -1", 1, "data.seed"),
    (f"train stage.yaml --data.seed {10**30}", 1, "data.seed"),
    ("train stage.yaml --data.max_tokens -5", 1, "data.max_tokens"),
    ("train stage.yaml --image_size 0", 1, "image_size"),
    ("train stage.yaml --global_batch_size 3", 1, "global_batch_size"),
    ("plan stage.yaml --gpus 0", 2, "--gpus 0 must be at least 1"),
    ("plan stage.yaml --gpus 1 --mfu 1.5", 2, "--mfu 1.5 must be at most 1"),
    ("plan stage.yaml --gpus 1 --mfu nan", 2, "--mfu must be a number"),
    ("plan stage.yaml --gpus 1 --tokens inf", 2, "--tokens inf must be at most"),
    ("data mixture stage.yaml --draws 0", 2, "--draws 0 must be at least 1"),
    ("data inspect talk.jsonl --samples -1", 2, "--samples -1 must be at least 0"),
    ("data inspect talk.jsonl --max_tokens 0", 2, "--max_tokens 0 must be at least 1"),
    ("data convert gqa --source bench --out new --workers 0", 2, "--workers 0 must be at least 1"),
    (f"{RUN} new --limit 0", 2, "--limit 0 must be at least 1"),
    (f"{RUN} new --batch-tokens -1", 2, "--batch_tokens -1 must be at least 1"),
    ("eval judge answers --runs 0", 2, "--runs 0 must be at least 1"),
    ("eval judge answers --price-in -1", 2, "--price_in -1.0 must be at least 0"),
    ("eval report answers --failures -1", 2, "--failures -1 must be at least 0"),
    # text that is none
    ("chat checkpoint -m caf\udce9", 2, "--message is not UTF-8 text"),
    ("chat caf\udce9 -m hi", 2, "CHECKPOINT is not UTF-8 text"),
    ("train stage.yaml --data.template caf\udce9", 2, "--data.template is not UTF-8 text"),
    ("train caf\udce9.yaml", 1, "does not exist"),
    ("eval run checkpoint --tasks caf\udce9 --data bench --out new", 2, "--tasks is not UTF-8 text"),
]


@pytest.mark.parametrize(("line", "code", "message"), BAD_INPUT, ids=[line for line, *_ in BAD_INPUT])
def test_bad_input_is_one_line_that_names_it(
    line: str,
    code: int,
    message: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(desk)
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    err = capsys.readouterr().err
    assert stopped.value.code == code, err
    (said,) = [text for text in err.splitlines() if text.startswith("owl2 ")]
    assert err.endswith(f"{said}\n"), "the message is the last line"
    assert message in said
    assert len(said) < 500


@pytest.mark.parametrize("command", ["run", "judge"])
def test_a_key_of_the_environment_is_stripped_and_never_shown(
    command: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(desk)
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    words = {"run": ["run", "--data", "bench", "--out", "new"], "judge": ["judge", "answers", "--yes"]}[
        command
    ]
    refused = b'{"error": {"message": "sk-secret is no key"}}'
    with served(lambda request: refused, troubles=[401] * 9) as script, pytest.raises(SystemExit, match="1"):
        main(["eval", *words, "--tasks", "vqav2", "--endpoint", script.url, "--model", "owl"])
    shown = "".join(capfd.readouterr())
    assert "sk-secret" not in shown
    if command == "run":
        assert script.headers[0]["Authorization"] == "Bearer sk-secret"
        assert "OPENAI_API_KEY" in shown

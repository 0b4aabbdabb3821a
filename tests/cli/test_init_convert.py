"""`owl2 init` and `owl2 convert`: a folder that loads, what came from where, mistakes in one line."""

import json
from pathlib import Path

import pytest
import torch

import owl2
from owl2.__main__ import main
from owl2.checkpoint import load_model
from owl2.cli.convert import convert
from owl2.cli.init import init
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)

transformers = pytest.importorskip("transformers")


@pytest.fixture
def parts(tmp_path: Path, sentencepiece_tokenizer) -> dict[str, Path]:  # noqa: F811
    """A tiny CLIP and a tiny LLaMA with a tokenizer, as `transformers` saves them."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    clip = transformers.CLIPVisionConfig(**vision, image_size=56, patch_size=14)
    transformers.CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
    language = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = transformers.LlamaConfig(**language, vocab_size=sentencepiece_tokenizer.vocab_size)
    transformers.LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    sentencepiece_tokenizer.save(tmp_path / "llama")
    return {"vision": tmp_path / "clip", "language": tmp_path / "llama"}


def words(**options) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def test_a_new_model_is_whole_and_answers(parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # no path is broken over lines
    init(**parts, out=tmp_path / "new", queries=4, abstractor_layers=1, image_size=84)
    printed = capsys.readouterr().out
    for word in (
        "vision encoder",
        "clip",
        "visual abstractor",
        "random, seed 0",
        "copy of the text weights",
        "llama",
    ):
        assert word in printed
    owl = owl2.load(tmp_path / "new", progress=False)
    assert owl.processor.image_transform.size == owl.model.config.vision.image_size == 84
    batch = owl.processor(text=["USER: hello ASSISTANT:"], images=[[]])
    assert len(owl.generate(**batch, max_new_tokens=3, min_new_tokens=3)[0]) == 3


def test_a_new_model_is_not_written_over_anything(parts, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "precious.txt").write_text("mine")
    with pytest.raises(SystemExit, match="1"):
        main(["init", *words(**parts, out=tmp_path / "new")])
    assert "owl2 init:" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["precious.txt"]


def test_parts_in_the_wrong_place_are_told_apart(parts, tmp_path, capsys):
    exchanged = {"vision": parts["language"], "language": parts["vision"]}
    with pytest.raises(SystemExit, match="1"):
        main(["init", *words(**exchanged, out=tmp_path / "new")])
    assert "expected a vision encoder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_converting_keeps_every_value_and_the_tokenizer(parts, tmp_path, capsys):
    main(["init", *words(**parts, out=tmp_path / "new", queries=4, abstractor_layers=1)])
    convert(str(tmp_path / "new"), tmp_path / "converted")
    printed = capsys.readouterr().out
    assert "bit-equal" in printed
    assert "tokenizer.model" in printed
    old, new = (load_model(tmp_path / name, progress=False).state_dict() for name in ("new", "converted"))
    assert all(torch.equal(old[name], new[name]) for name in old)
    convert(str(tmp_path / "new"), tmp_path / "half", dtype="float16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"


def test_a_mistake_is_one_line_on_standard_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("owl2 convert: ")
    assert "does not exist" in printed.err

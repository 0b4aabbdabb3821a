"""The text path as GGUF: what is read again is what was written, and llama.cpp computes what we compute."""

from pathlib import Path
from typing import Any

import pytest
import torch

import owl2
from owl2.__main__ import main
from owl2.checkpoint import CheckpointError, save_checkpoint
from owl2.checkpoint.gguf import GGUFFile, read_gguf
from owl2.checkpoint.gguf_write import write_gguf
from owl2.model.config import RopeScaling
from owl2.processor import ImageTransform, JsonTokenizer, Processor, Tokenizer, load_tokenizer
from tests.checkpoint.test_gguf import TEXTS, trained_byte_level
from tests.model.tiny import tiny_model
from tests.processor.conftest import sentencepiece_model, sentencepiece_tokenizer  # noqa: F401  (fixtures)

pytest.importorskip("gguf")


def write_folder(folder: Path, tokenizer: Tokenizer, **decoder: Any) -> Path:
    """A checkpoint whose two branches differ, with some rows of the embedding that no token has."""
    model = tiny_model(
        vocab_size=tokenizer.vocab_size + 5,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        max_position_embeddings=128,
        **{"num_key_value_heads": 2, "intermediate_size": 192, **decoder},
    )
    processor = Processor(
        tokenizer,
        ImageTransform(56),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
    )
    save_checkpoint(model, folder, processor=processor)
    return folder


def byte_level() -> JsonTokenizer:
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}
    return JsonTokenizer(trained_byte_level().to_str(), names)


@pytest.fixture(params=["byte level", "sentencepiece"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "sentencepiece":
        return write_folder(tmp_path / "checkpoint", request.getfixturevalue("sentencepiece_tokenizer"))
    return write_folder(tmp_path / "checkpoint", byte_level())


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("q8_0", 2e-2)])
def test_the_weights_are_those_of_the_text_branch(
    folder: Path, tmp_path: Path, kind: Any, tolerance: float
) -> None:
    written = write_gguf(folder, tmp_path / "text.gguf", kind)
    owl = owl2.load(folder, progress=False)
    state = owl.model.state_dict()
    part = read_gguf(tmp_path / "text.gguf")
    assert part.config.hidden_size == owl.model.config.decoder.hidden_size
    for name in part.recipes:
        source = name if name in state else name.replace(".weight", ".multiway.0.weight")
        torch.testing.assert_close(part.read(name), state[source], rtol=tolerance, atol=tolerance)
    assert written.num_tensors == len(part.recipes)
    assert written.left_out > 50


def test_the_tokenizer_is_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    write_gguf(folder, tmp_path / "text.gguf")
    ours = load_tokenizer(folder)
    (tmp_path / "again").mkdir()
    for name, content in read_gguf(tmp_path / "text.gguf").tokenizer_files.items():
        (tmp_path / "again" / name).write_bytes(content)
    again = load_tokenizer(tmp_path / "again")
    assert (again.bos_token_id, again.eos_token_id, again.add_bos) == (
        ours.bos_token_id,
        ours.eos_token_id,
        ours.add_bos,
    )
    for text in filter(None, TEXTS):
        assert again.encode(text) == ours.encode(text)


def test_llama_3s_rescaling_is_written(tmp_path: Path) -> None:
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    folder = write_folder(tmp_path / "checkpoint", byte_level(), rope_theta=500000.0, rope_scaling=scaling)
    write_gguf(folder, tmp_path / "text.gguf")
    found = read_gguf(tmp_path / "text.gguf").config.rope_scaling
    assert found is not None
    assert found.factor == pytest.approx(8.0)


def test_the_command_says_what_is_not_in_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "text.gguf"
    main(["convert", str(folder), str(out), "--dtype", "q8_0"])
    assert "of images are left out, so llama.cpp answers text alone" in capsys.readouterr().out
    assert GGUFFile(out).metadata["general.architecture"] == "llama"
    for words, code, message in (
        ([str(out)], 1, "exists"),
        ([str(tmp_path / "b.gguf"), "--dtype", "bfloat16"], 2, "no type of a .gguf file"),
        ([str(tmp_path / "folder"), "--dtype", "q8_0"], 2, "no type of a folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["convert", str(folder), *words])
        assert stopped.value.code == code
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["text.gguf"]


def test_rows_that_q8_0_cannot_divide_and_unknown_tokenizers_are_errors_that_leave_nothing(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "checkpoint", byte_level(), intermediate_size=172)
    with pytest.raises(CheckpointError, match=r"down_proj.weight has rows of 172, which q8_0 cannot"):
        write_gguf(folder, tmp_path / "text.gguf", "q8_0")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(
        tokenizer.read_text().replace('"individual_digits":true', '"individual_digits":false')
    )
    tokenizer.write_text(
        tokenizer.read_text().replace('"individual_digits": true', '"individual_digits": false')
    )
    with pytest.raises(CheckpointError, match="no name for this way to split text"):
        write_gguf(folder, tmp_path / "text.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.oracle
@pytest.mark.parametrize("question", ["Hello", "What is 12 plus 3?", "naïve café – 你好"])
def test_llama_cpp_has_our_log_probabilities(folder: Path, tmp_path: Path, question: str) -> None:
    """`xllamacpp`, a wheel of llama.cpp, is not part of `dev`."""
    xllamacpp = pytest.importorskip("xllamacpp")
    write_gguf(folder, tmp_path / "text.gguf", "float32")
    params = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "text.gguf")
    params.n_ctx, params.n_parallel, params.warmup, params.ui = 128, 1, False, False
    server = xllamacpp.Server(params)
    owl = owl2.load(folder, progress=False)
    ids = owl.processor.encode([{"role": "user", "content": question}], generation_prompt=True).ids
    with torch.inference_mode():
        ours = owl.model(torch.tensor([ids]))[0].log_softmax(-1)
    compared = 0
    for length in range(2, len(ids) + 1):
        asked = {"prompt": ids[:length], "max_tokens": 1, "temperature": 0, "logprobs": 5}
        (choice,) = server.handle_completions({**asked, "cache_prompt": False})["choices"]
        for place in (choice["logprobs"] or {"content": []})["content"]:  # none for a part of a character
            for best in place["top_logprobs"]:
                assert best["logprob"] == pytest.approx(float(ours[length - 1, best["id"]]), abs=2e-3)
                compared += 1
    assert compared >= 20

"""The library's entry point: load a folder, ask, stream, talk."""

import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import owl2
from owl2.checkpoint import CheckpointError, save_checkpoint
from owl2.devices import DeviceError
from owl2.generate import GenerationError
from owl2.processor import (
    ImageError,
    ImageTransform,
    Processor,
    TemplateError,
    Tokenizer,
    TokenizerError,
)
from tests.model.tiny import tiny_model
from tests.processor.conftest import (  # noqa: F401  (fixtures)
    byte_level_tokenizer,
    llama_json_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
    tokenizer,
)

IMAGE = Image.new("RGB", (50, 40), "orange")
QUESTION = [
    {
        "role": "user",
        "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What is this?"}],
    }
]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:  # noqa: F811
    """A checkpoint folder as training leaves it."""
    model = tiny_model(
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=128,
    )
    processor = Processor(
        tokenizer,
        ImageTransform(size=56),
        image_token_id=model.config.image_token_id,
        tokens_per_image=model.config.tokens_per_image,
    )
    save_checkpoint(model, tmp_path / "checkpoint", processor=processor)
    return tmp_path / "checkpoint"


def test_the_calls_of_the_contract_work_on_a_folder(folder: Path) -> None:
    owl = owl2.load(folder, device="cpu", dtype="float32")
    batch = owl.processor(
        text=["USER: <|image|>What is this? ASSISTANT:", "USER: Hello ASSISTANT:"], images=[[IMAGE], []]
    )
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    logits = owl.model(**batch)
    assert logits.shape == (*batch["input_ids"].shape, owl.model.config.decoder.vocab_size)
    ids = owl.generate(**batch, max_new_tokens=16, min_new_tokens=16, do_sample=False)
    assert [len(row) for row in ids] == [16, 16]
    assert ids[0][0] == logits[0][batch["attention_mask"][0]][-1].argmax()
    assert isinstance(owl.chat(QUESTION), str)


def test_chat_is_the_joined_stream_and_the_decoded_ids(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    (ids,) = owl.generate(**owl.processor.chat([QUESTION]), max_new_tokens=20)
    answer = owl.chat(QUESTION, max_new_tokens=20)
    assert answer == owl.processor.decode(ids).strip()
    assert "".join(owl.stream(QUESTION, max_new_tokens=20)) == answer


def test_settings_of_the_folder_are_the_defaults_and_keywords_win(folder: Path) -> None:
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 2.0, "seed": 5, "max_new_tokens": 12})
    )
    owl = owl2.load(folder, progress=False)
    batch = owl.processor.chat([QUESTION])
    drawn = owl.generate(**batch)
    assert owl.generate(**batch) == drawn
    assert owl.generate(**batch, seed=6) != drawn
    assert owl.generate(**batch, do_sample=False) == owl.generate(**batch, temperature=0.0)
    assert len(owl.generate(**batch, max_new_tokens=3, min_new_tokens=3)[0]) == 3


def test_a_session_continues_the_dialogue(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    session = owl.session()
    first = "".join(session.say(QUESTION[0]["content"], max_new_tokens=6))
    second = "".join(session.say("And now?", max_new_tokens=6))
    messages = [*QUESTION, {"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    assert second == owl.chat(messages, max_new_tokens=6)


@pytest.mark.parametrize("home", ["config.json", "generation_config.json", "tokenizer"])
def test_an_answer_ends_with_any_end_token_of_model_settings_and_tokenizer(folder: Path, home: str) -> None:
    owl = owl2.load(folder, progress=False)
    batch = owl.processor.chat([QUESTION])
    (free,) = owl.generate(**batch, max_new_tokens=20, min_new_tokens=20)
    own, others = owl.processor.tokenizer.eos_token_id, sorted({3, 4, 5, 6} - set(free))
    end = own if home == "tokenizer" else next(token for token in free[3:] if token != own)
    for name in ("config.json", "generation_config.json"):
        raw = json.loads((folder / name).read_text())
        raw["eos_token_id"] = [*others, end] if name == home else others
        (folder / name).write_text(json.dumps(raw))
    if home == "tokenizer":  # the model says it at once
        with torch.no_grad():
            owl.model.lm_head.weight[end] = owl.model.lm_head.weight[free[0]] * 2
        save_checkpoint(
            owl.model, folder, processor=owl.processor, generation_config={"eos_token_id": others}
        )
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, "eos_token_id": others}))
    owl = owl2.load(folder, progress=False)
    assert {*others, end, own} == set(owl.generation_config.eos_token_id)  # type: ignore[arg-type]
    (free,) = owl.generate(**batch, max_new_tokens=20, eos_token_id=others)
    expected = free[: free.index(end)]
    assert len(expected) < 20
    assert owl.generate(**batch, max_new_tokens=20) == [expected]
    answer = owl.processor.decode(expected).strip()
    assert owl.chat(QUESTION, max_new_tokens=20) == answer
    session = owl.session()
    assert "".join(session.say(QUESTION[0]["content"], max_new_tokens=20)) == answer
    assert not session.is_cut


def test_beams_are_a_setting_of_every_call_and_of_the_folder(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    settings = {"num_beams": 4, "max_new_tokens": 12, "length_penalty": 2.0}
    (ids,) = owl.generate(**owl.processor.chat([QUESTION]), **settings)
    (greedy,) = owl.generate(**owl.processor.chat([QUESTION]), max_new_tokens=12)
    answer = owl.processor.decode(ids).strip()
    assert ids != greedy
    assert owl.chat(QUESTION, **settings) == answer
    session = owl.session()
    assert "".join(session.say(QUESTION[0]["content"], **settings)) == answer
    again = "".join(session.say("And now?", **settings))
    messages = [*QUESTION, {"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    assert again == owl.chat(messages, **settings), "the cache of a dialogue survives a search"
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert owl2.load(folder, progress=False).chat(QUESTION) == answer


def test_a_score_is_the_log_probability_of_the_answer_as_training_reads_it(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    answers = ["yes", "no, it is a cat", "y"]
    scores = owl.score(QUESTION, answers)
    for answer, score in zip(answers, scores, strict=True):
        whole = owl.processor.encode([*QUESTION, {"role": "assistant", "content": answer}])
        ids, is_target = torch.tensor(whole.ids), torch.tensor(whole.is_target)
        assert is_target[-1], "the end token is a target in training, and no part of a score"
        pixels = owl.processor.pixels(whole.images)
        with torch.no_grad():
            found = owl.model(ids[None], None, pixels)[0].log_softmax(-1)
        places = is_target[:-1].nonzero().squeeze(1)
        assert score == pytest.approx(float(found[places - 1, ids[places]].sum()), abs=1e-3)
    greedy = owl.chat(QUESTION, max_new_tokens=4, min_new_tokens=4)
    assert len({round(score, 6) for score in scores}) == 3
    assert owl.score(QUESTION, [*answers, greedy])[:3] == pytest.approx(scores, abs=1e-3)
    for wrong in ([], ["yes", ""], ["x" * 5000]):
        with pytest.raises(GenerationError):
            owl.score(QUESTION, wrong)


def test_a_question_may_be_text_with_its_images(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    assert owl.chat("What is this?", images=[IMAGE], max_new_tokens=9) == owl.chat(QUESTION, max_new_tokens=9)
    assert owl.score("What is this?", ["yes"], images=[IMAGE]) == owl.score(QUESTION, ["yes"])
    hello: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
    assert owl.chat("Hello", max_new_tokens=9) == owl.chat(hello, max_new_tokens=9)
    with pytest.raises(TypeError, match="in its turns"):
        owl.chat(QUESTION, images=[IMAGE])
    with pytest.raises(TypeError, match="expected a list of images"):
        owl.chat("What?", images="cat.jpg")


def test_why_has_the_probabilities_whose_product_is_the_score_with_and_without_seeing(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    why = owl.why(QUESTION, answer="no, it is a cat")
    assert "".join(token.text for token in why.tokens).strip() == "no, it is a cat"
    blank = Image.new("RGB", (1, 1))
    for images, found in (
        ([IMAGE], [token.probability for token in why.tokens]),
        ([blank], [token.blank_probability for token in why.tokens]),
    ):
        (score,) = owl.score("What is this?", ["no, it is a cat"], images=images)
        assert math.log(math.prod(found)) == pytest.approx(score, abs=1e-4)
    assert any(t.probability != pytest.approx(t.blank_probability, rel=1e-3) for t in why.tokens)
    assert why.blank_answer == owl.chat("What is this?", images=[blank])
    text = owl.why("Hello", answer="yes")
    assert [t.probability for t in text.tokens] == [t.blank_probability for t in text.tokens]
    assert owl.why("Hello", answer="").tokens == ()


def test_half_precision_answers_too(folder: Path) -> None:
    owl = owl2.load(folder, dtype="bfloat16", progress=False)
    assert owl.model.dtype == torch.bfloat16
    assert isinstance(owl.chat(QUESTION, max_new_tokens=4), str)


def test_a_folder_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        owl2.load(tmp_path)


@pytest.mark.parametrize("device", ["warp", "", "cuda:-1", "cpu:x", None])
def test_a_device_that_pytorch_does_not_know_is_an_error_with_those_of_the_machine(
    tmp_path: Path, device: str | None
) -> None:
    with pytest.raises(DeviceError, match=f"device {device!r} is unknown; PyTorch sees cpu"):
        owl2.load(tmp_path, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cuda:99", "mps:7", "xpu:99", "meta", "vulkan", "hpu", "cpu:3"])
def test_a_device_that_is_not_there_is_an_error_before_any_file_is_read(tmp_path: Path, device: str) -> None:
    for given in (device, torch.device(device)):
        with pytest.raises(DeviceError, match=f"device {device} is not there: "):
            owl2.load(tmp_path / "no folder", device=given)


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int64, None, ""])
def test_an_unknown_dtype_is_an_error_that_lists_the_three_before_any_file_is_read(
    tmp_path: Path, dtype: object
) -> None:
    with pytest.raises(CheckpointError, match="is not one of float32, bfloat16, float16"):
        owl2.load(tmp_path / "no folder", dtype=dtype)  # type: ignore[arg-type]


def test_too_long_an_answer_and_too_long_a_question_are_errors_with_the_counts(folder: Path) -> None:
    owl = owl2.load(folder, progress=False)
    with pytest.raises(GenerationError, match="context has 128 tokens: at most"):
        owl.chat(QUESTION, max_new_tokens=128)
    with pytest.raises(ValueError, match="128"):
        owl.chat([{"role": "user", "content": "a b c d " * 100}])


def test_a_conversation_that_ends_with_an_answer_is_an_error(folder: Path) -> None:
    with pytest.raises(TemplateError, match="turn 2"):
        owl2.load(folder, progress=False).chat([*QUESTION, {"role": "assistant", "content": "A cat."}])


def test_build_makes_a_preset_without_weights() -> None:
    model = owl2.build("owl2_7b", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 8_197_859_328


def test_importing_the_package_and_its_version_loads_nothing_heavy() -> None:
    code = (
        "import sys, owl2; owl2.__all__; import owl2.cli.chat; "
        "heavy = {'torch', 'numpy', 'PIL', 'tokenizers', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy; from owl2 import Owl2, build, load; assert 'torch' in sys.modules; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_version_is_that_of_the_project_file() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert owl2.__version__ == project["project"]["version"]


def test_every_error_of_a_user_is_an_owl2_error() -> None:
    for kind in (CheckpointError, DeviceError, GenerationError, ImageError, TemplateError, TokenizerError):
        assert issubclass(kind, owl2.Owl2Error)
        assert issubclass(kind, ValueError)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        AttributeError, match="no attribute 'laod'; it has Owl2, Owl2Error, Owl2Warning, __version__"
    ):
        _ = owl2.laod  # type: ignore[attr-defined]

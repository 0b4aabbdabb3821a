"""What we write is read by others: the real classes of `transformers` and `safetensors` open our folders."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import owl2
from owl2.processor import Tokenizer
from tests.checkpoint.small import write_checkpoint
from tests.processor.conftest import (  # noqa: F401  (fixtures)
    byte_level_tokenizer,
    llama_json_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
    tokenizer,
)
from tests.processor.small import WORDS, noise

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:  # noqa: F811
    return write_checkpoint(tmp_path / "ours", tokenizer, resize="crop")


def image_processor(folder: Path):
    """CLIP's image processor that Pillow works for, as the released code uses it."""
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    return kind.from_pretrained(folder)


def theirs(folder: Path, image) -> torch.Tensor:
    return torch.from_numpy(image_processor(folder)(image, return_tensors="np")["pixel_values"][0])


@pytest.mark.parametrize("size", [(70, 50), (50, 70), (56, 56), (200, 31)])
def test_the_image_processor_gives_our_pixels_in_crop_mode(folder, size):
    ours = owl2.load(folder, progress=False).processor.pixels([noise(*size)])[0]
    torch.testing.assert_close(theirs(folder, noise(*size)), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("resize", ["square", "pad"])
def test_the_image_processor_gives_our_pixels_of_a_square_image_in_any_mode(tmp_path, tokenizer, resize):  # noqa: F811
    folder = write_checkpoint(tmp_path / "ours", tokenizer, resize=resize)
    ours = owl2.load(folder, progress=False).processor.pixels([noise(90, 90)])[0]
    torch.testing.assert_close(theirs(folder, noise(90, 90)), ours, rtol=0, atol=1e-6)


def test_the_release_readme_gives_our_pixels_in_square_mode(tmp_path, tokenizer):  # noqa: F811
    folder = write_checkpoint(tmp_path / "ours", tokenizer)
    image = noise(90, 40)
    ours = owl2.load(folder, progress=False).processor.pixels([image])[0]
    torch.testing.assert_close(theirs(folder, image.resize((90, 90))), ours, rtol=0, atol=1e-6)


def test_the_settings_of_ours_hide_no_method_of_the_image_processor(folder):
    processor = image_processor(folder)
    written = json.loads((folder / "preprocessor_config.json").read_text())
    assert not [name for name in written if callable(getattr(type(processor), name, None))]


def test_the_tokenizer_gives_our_ids_of_plain_text(folder):
    read, tokenizer = (  # noqa: F811
        transformers.AutoTokenizer.from_pretrained(folder),
        owl2.load(folder, progress=False).processor.tokenizer,
    )
    rng = random.Random(0)
    for _ in range(100):
        text = " ".join(
            rng.choices([*WORDS, "42", "a,b", "\n", "naïve 你好 🦙", "two  spaces"], k=rng.randrange(1, 9))
        )
        assert read(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
        assert read.decode(tokenizer.encode(text)) == text
    assert read.eos_token_id == tokenizer.eos_token_id
    assert read.pad_token_id in (tokenizer.pad_token_id, None)


def test_the_tokenizer_gives_our_ids_of_several_turns(tmp_path, sentencepiece_tokenizer):  # noqa: F811
    folder = write_checkpoint(tmp_path / "ours", sentencepiece_tokenizer)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    processor = owl2.load(folder, progress=False).processor
    prompt = "USER: what is in the image? ASSISTANT: an owl</s>USER: two apples? ASSISTANT: yes</s>"
    assert processor(text=[prompt])["input_ids"][0].tolist() == read(prompt).input_ids


def test_the_generation_config_has_our_settings(folder):
    read = transformers.GenerationConfig.from_pretrained(folder)
    owl = owl2.load(folder, progress=False)
    assert not read.do_sample
    assert read.max_new_tokens == owl.generation_config.max_new_tokens
    assert read.eos_token_id == owl.processor.tokenizer.eos_token_id


def test_safetensors_opens_the_weights_without_our_code(folder):
    owl = owl2.load(folder, progress=False)
    with safe_open(folder / "model.safetensors", "np") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert state.keys() == owl.model.state_dict().keys()
    for name, value in owl.model.state_dict().items():
        assert np.array_equal(state[name], value.numpy())

"""Settings of other people's folders: used, known to have no effect, or named in one warning."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import owl2
from owl2.checkpoint import convert, load_model
from owl2.checkpoint.settings import GENERATION_USED, ignored_settings
from owl2.generate import GenerationConfig
from owl2.processor import ImageError, SentencePieceTokenizer, TokenizerError
from tests.checkpoint.small import edit, make_released, write_checkpoint
from tests.processor.conftest import (  # noqa: F401  (fixtures)
    byte_level_tokenizer,
    sentencepiece_model,
    sentencepiece_tokenizer,
)
from tests.processor.small import noise


@pytest.fixture
def folder(tmp_path: Path, sentencepiece_tokenizer: SentencePieceTokenizer) -> Path:  # noqa: F811
    return write_checkpoint(tmp_path / "ours", sentencepiece_tokenizer)


def said(folder: Path) -> list[str]:
    """The warnings of ours when a folder is loaded."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        owl2.load(folder, progress=False)
    return [str(warning.message) for warning in caught if issubclass(warning.category, owl2.Owl2Warning)]


def test_our_own_folders_have_no_setting_that_is_ignored(tmp_path, folder, byte_level_tokenizer):  # noqa: F811
    assert said(folder) == []
    assert said(write_checkpoint(tmp_path / "json", byte_level_tokenizer, resize="pad")) == []


def test_the_settings_of_the_release_and_of_one_align_are_all_known(folder):
    assert said(make_released(folder)) == []


def test_settings_that_are_ignored_are_named_in_one_warning_by_file(folder):
    make_released(folder, level_ids=[15129, 1781], temperature=0.9, attention_dropout=0.1)
    edit(folder / "tokenizer_config.json", add_eos_token=True)
    edit(folder / "preprocessor_config.json", do_pad=True)
    edit(folder / "generation_config.json", no_repeat_ngram_size=3, num_beam_groups=1, early_stopping=False)
    (text,) = said(folder)
    assert text == (
        f"{folder} has settings that owl2 ignores: config.json: level_ids = [15129, 1781], "
        "temperature = 0.9, attention_dropout = 0.1; generation_config.json: no_repeat_ngram_size = 3; "
        "preprocessor_config.json: do_pad = true; tokenizer_config.json: add_eos_token = true"
    )


def test_settings_of_the_visual_parts_are_named_with_their_part(folder):
    make_released(folder)
    visual = json.loads((folder / "config.json").read_text())["visual_config"]
    visual["visual_model"]["attention_dropout"] = 0.1
    visual["visual_abstractor"]["num_experts"] = 2
    edit(folder / "config.json", visual_config=visual)
    assert ignored_settings(folder)["config.json"] == {
        "visual_model.attention_dropout": 0.1,
        "visual_abstractor.num_experts": 2,
    }


@pytest.mark.parametrize("aspect", ["square", "anyres"])
def test_an_aspect_ratio_that_is_not_pad_is_named(folder, aspect):
    make_released(folder, image_aspect_ratio=aspect)
    assert ignored_settings(folder)["config.json"] == {"image_aspect_ratio": aspect}
    assert owl2.load(folder, progress=False).processor.image_transform.resize == "square"


def test_tokens_added_to_a_sentencepiece_model_are_named_unless_they_only_pad(folder):
    make_released(folder)
    edit(folder / "tokenizer_config.json", pad_token="<pad>", add_prefix_space=False)
    edit(folder / "added_tokens.json", **{"<pad>": 460, "<box>": 461})
    assert ignored_settings(folder)["added_tokens.json"] == {"<box>": 461}
    assert ignored_settings(folder)["tokenizer_config.json"] == {"add_prefix_space": False}


def test_every_setting_of_generation_is_known_as_used():
    assert {field.name for field in dataclasses.fields(GenerationConfig)} == GENERATION_USED


def test_training_and_converting_name_them_too_and_of_several_ranks_the_first(folder, tmp_path, monkeypatch):
    make_released(folder, level_ids=[1])
    for read in (load_model, lambda folder, progress: convert(folder, tmp_path / "new", progress=progress)):
        with pytest.warns(owl2.Owl2Warning, match="level_ids"):
            read(folder, progress=False)
    monkeypatch.setenv("RANK", "1")
    assert said(folder) == []


def test_a_folder_that_was_tuned_with_padding_pads(folder):
    make_released(folder)
    wide = noise(90, 40)
    processor = owl2.load(folder, progress=False).processor
    assert processor.image_transform.resize == "pad"
    canvas = Image.new("RGB", (90, 90), (122, 116, 104))
    canvas.paste(wide, (0, 25))
    expected = owl2.load(folder, progress=False).processor.replace(resize="square").pixels([canvas])
    assert torch.equal(processor.pixels([wide]), expected)


def test_a_resize_that_the_preprocessor_states_wins_over_the_aspect_ratio(folder):
    make_released(folder)
    for settings in ({"resize": "crop"}, {"owl2": {"resize": "crop"}}):
        edit(folder / "preprocessor_config.json", drop=("resize", "owl2"), **settings)
        assert owl2.load(folder, progress=False).processor.image_transform.resize == "crop"


def test_what_a_folder_pads_is_kept_when_its_processor_is_saved(folder, tmp_path):
    make_released(folder)
    processor = owl2.load(folder, progress=False).processor
    processor.save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())["owl2"]
    assert settings == {"alpha": "drop", "resize": "pad", "template": "mplug_owl2"}


def test_transparency_is_white_in_our_folders_and_dropped_in_released_ones(folder):
    ink = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    ink.paste((9, 9, 9, 255), (0, 0, 10, 20))
    messages = [{"role": "user", "content": [{"type": "image", "image": ink}]}]
    ours = owl2.load(folder, progress=False).processor
    assert ours.encode(messages).images[0].getpixel((15, 5)) == (255, 255, 255)
    released = owl2.load(make_released(folder), progress=False).processor
    for images in (released.encode(messages).images, [released.load_image(ink)]):
        assert images[0].getpixel((15, 5)) == (0, 0, 0)
    prompt = released(text=["<|image|>"], images=[[ink]])
    assert torch.equal(prompt["pixel_values"], released.pixels([ink.convert("RGB")]))


def test_the_end_token_that_a_folder_states_is_its_end_token(folder):
    make_released(folder)
    edit(folder / "special_tokens_map.json", eos_token={"content": "▁owl"})
    tokenizer = owl2.load(folder, progress=False).processor.tokenizer
    assert tokenizer.decode([tokenizer.eos_token_id, *tokenizer.encode("an")]) == "owl an"
    edit(folder / "special_tokens_map.json", eos_token="<end>")
    with pytest.raises(
        TokenizerError, match=r"eos_token '<end>' is neither in tokenizer\.model nor in added_tok"
    ):
        owl2.load(folder, progress=False)
    edit(folder / "added_tokens.json", **{"<end>": 460})
    assert owl2.load(folder, progress=False).processor.tokenizer.eos_token_id == 460
    assert ignored_settings(folder)["added_tokens.json"] == {}


def test_special_tokens_of_a_tokenizer_json_may_be_in_the_map_alone(tmp_path, byte_level_tokenizer):  # noqa: F811
    folder = write_checkpoint(tmp_path / "json", byte_level_tokenizer)
    edit(folder / "tokenizer_config.json", drop=("bos_token", "eos_token", "pad_token"))
    with pytest.raises(TokenizerError, match="names no eos_token"):
        owl2.load(folder, progress=False)
    edit(folder / "special_tokens_map.json", eos_token={"content": "<|im_end|>"}, bos_token="<|im_start|>")
    tokenizer = owl2.load(folder, progress=False).processor.tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 1)


def test_an_unknown_field_of_our_own_settings_is_an_error(folder):
    edit(folder / "preprocessor_config.json", owl2={"aplha": "white"})
    with pytest.raises(
        ImageError, match=r'preprocessor_config\.json: owl2 is {"aplha": "white"}, expected an obj'
    ):
        owl2.load(folder, progress=False)

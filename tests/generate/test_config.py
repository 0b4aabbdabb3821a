"""`generation_config.json` fills the settings (other settings: tests/checkpoint/test_settings.py)."""

import json
from pathlib import Path

import pytest

from owl2.generate import GenerationConfig, GenerationError


def write(folder: Path, **content: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_a_folder_without_the_file_decodes_greedily(tmp_path: Path) -> None:
    assert GenerationConfig.read(tmp_path) == GenerationConfig()
    assert GenerationConfig().is_greedy


def test_the_released_file_is_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        _from_model_config=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        transformers_version="4.31.0",
    )
    assert GenerationConfig.read(tmp_path) == GenerationConfig(eos_token_id=2)


def test_sampling_settings_and_several_end_tokens_are_read(tmp_path: Path) -> None:
    write(tmp_path, do_sample=True, temperature=0.7, top_p=0.9, top_k=None, eos_token_id=[2, 5])
    config = GenerationConfig.read(tmp_path)
    assert config == GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, eos_token_id=(2, 5))


def test_what_to_dict_writes_reads_back(tmp_path: Path) -> None:
    config = GenerationConfig(do_sample=True, top_k=4, seed=1, eos_token_id=(2, 5))
    assert GenerationConfig.read(write(tmp_path, **config.to_dict())) == config


@pytest.mark.parametrize("text", ["{", "[1]", '{"top_p": 3}', '{"temperature": "warm"}'])
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(GenerationError, match=r"generation_config\.json"):
        GenerationConfig.read(tmp_path)

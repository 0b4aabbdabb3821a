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


def test_settings_of_a_beam_search_are_read(tmp_path: Path) -> None:
    write(tmp_path, num_beams=5, length_penalty=0, early_stopping="never", do_sample=False)
    config = GenerationConfig.read(tmp_path)
    assert (config.num_beams, config.length_penalty, config.early_stopping) == (5, 0, "never")


@pytest.mark.parametrize("text", ["{", "[1]", '{"top_p": 3}', '{"temperature": "warm"}'])
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(GenerationError, match=r"generation_config\.json"):
        GenerationConfig.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": float("nan")}, "temperature = nan must be a finite number"),
        ({"temperature": float("inf")}, "temperature = inf must be a finite number"),
        ({"temperature": -0.5}, "temperature = -0.5 must be 0 or more; 0 is greedy"),
        ({"temperature": "warm"}, "temperature = 'warm' must be a number"),
        ({"top_p": 0}, "top_p = 0 must be above 0"),
        ({"top_p": 1.5}, "top_p = 1.5 must be at most 1"),
        ({"top_p": float("nan")}, "top_p = nan must be a finite number"),
        ({"top_k": -1}, "top_k = -1 must be 0 or more; 0 samples among all tokens"),
        ({"top_k": 2.5}, "top_k = 2.5 must be a whole number"),
        ({"seed": -1}, "seed = -1 must be 0 or more"),
        ({"seed": 1.5}, "seed = 1.5 must be a whole number or null"),
        ({"seed": 2**64}, "seed = 18446744073709551616 must be at most 9,223,372,036,854,775,807"),
        ({"max_new_tokens": True}, "max_new_tokens = True must be a whole number"),
        ({"max_new_tokens": 10**30}, "max_new_tokens = 1000000000000000000000000000000 must be at most"),
        ({"min_new_tokens": -1}, "min_new_tokens = -1 must be 0 or more"),
        ({"do_sample": "yes"}, "do_sample = 'yes' must be true or false"),
        ({"eos_token_id": "1"}, "eos_token_id = '1' must be a whole number or a list"),
        ({"eos_token_id": []}, "eos_token_id is an empty list"),
        ({"eos_token_id": [2, -1]}, r"eos_token_id = \(2, -1\) must be 0 or more"),
        ({"num_beams": 2.0}, "num_beams = 2.0 must be a whole number"),
        ({"length_penalty": float("-inf")}, "length_penalty = -inf must be a finite number"),
    ],
)
def test_impossible_values_are_one_sentence_in_a_call_and_in_a_file(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(GenerationError, match=f"^{message}"):
        GenerationConfig().replace(**settings)
    with pytest.raises(GenerationError, match=rf"generation_config\.json: {message}") as raised:
        GenerationConfig.read(write(tmp_path, **settings))
    assert "\n" not in str(raised.value)

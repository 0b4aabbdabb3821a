"""Every end token of a base model is one of the new model, whichever file of the base has it."""

import json
from pathlib import Path
from typing import Any

import pytest

from owl2.checkpoint import CheckpointError, assemble, load_model, save_checkpoint
from owl2.checkpoint.folder import read_config
from owl2.checkpoint.gguf import read_gguf
from owl2.generate import GenerationConfig, generate
from tests.checkpoint.test_gguf import bpe, write_gguf  # noqa: F401  (fixture)
from tests.checkpoint.test_parts import clip, llama
from tests.model.tiny import random_samples, tiny_model

BOTH_FILES = [
    pytest.param([5, 9, 11], None, id="config.json"),
    pytest.param(5, [5, 9, 11], id="generation_config.json"),
    pytest.param([5, 9], [11, 5], id="some in each"),
]


def write_ends(folder: Path, config: Any, generation: Any) -> None:
    edit(folder / "config.json", eos_token_id=config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(("config", "generation"), BOTH_FILES)
def test_a_new_model_has_all_end_tokens_of_its_language_model(
    tmp_path: Path, config: Any, generation: Any
) -> None:
    clip(tmp_path / "clip")
    llama(tmp_path / "llama")
    write_ends(tmp_path / "llama", config, generation)
    made = assemble(
        vision=tmp_path / "clip", language=tmp_path / "llama", queries=3, abstractor_layers=1, progress=False
    )
    made.save(tmp_path / "new")
    for name in ("config.json", "generation_config.json"):
        assert sorted(json.loads((tmp_path / "new" / name).read_text())["eos_token_id"]) == [5, 9, 11]
    model = load_model(tmp_path / "new", progress=False)
    assert model.config.decoder.end_tokens == {5, 9, 11}
    assert sorted(GenerationConfig.read(tmp_path / "new").eos_token_id) == [5, 9, 11]  # type: ignore[arg-type]
    save_checkpoint(model, tmp_path / "again")
    assert read_config(tmp_path / "again").decoder.end_tokens == {5, 9, 11}


@pytest.mark.parametrize(("config", "generation"), BOTH_FILES)
def test_a_checkpoint_has_the_end_tokens_of_both_of_its_files(
    tmp_path: Path, config: Any, generation: Any
) -> None:
    save_checkpoint(tiny_model(), tmp_path / "tiny")
    write_ends(tmp_path / "tiny", config, generation)
    assert load_model(tmp_path / "tiny", progress=False).config.decoder.end_tokens == {5, 9, 11}


def test_a_model_with_three_ends_stops_at_any_of_them(tmp_path: Path) -> None:
    model, (sample,) = tiny_model(), random_samples("3 I 5")
    (free,) = generate(model, sample.ids[None], None, sample.images, max_new_tokens=12, min_new_tokens=12)
    for place in (2, 5, 8):
        save_checkpoint(model, tmp_path / "tiny")
        write_ends(tmp_path / "tiny", [126, 127], [127, 126, free[place]])
        loaded = load_model(tmp_path / "tiny", progress=False)
        (answer,) = generate(loaded, sample.ids[None], None, sample.images, max_new_tokens=12)
        assert answer == free[: free.index(free[place])]


def test_a_gguf_file_ends_texts_turns_and_messages(tmp_path: Path, bpe: dict[str, Any]) -> None:  # noqa: F811
    write_gguf(tmp_path / "chat.gguf", tokenizer=bpe, eot_token_id=7, eom_token_id=8)
    assert read_gguf(tmp_path / "chat.gguf").config.eos_token_id == (2, 7, 8)
    write_gguf(tmp_path / "base.gguf", tokenizer=bpe)
    assert read_gguf(tmp_path / "base.gguf").config.eos_token_id == 2


@pytest.mark.parametrize("ends", ["</s>", ["</s>"], [[2]], 2.5, [-1], {"a": 1}])
def test_ends_that_are_no_token_ids_are_an_error_that_names_the_file(tmp_path: Path, ends: Any) -> None:
    save_checkpoint(tiny_model(), tmp_path / "tiny")
    write_ends(tmp_path / "tiny", 2, ends)
    with pytest.raises(
        CheckpointError, match=r"generation_config\.json: eos_token_id .* neither a token id nor"
    ):
        read_config(tmp_path / "tiny")

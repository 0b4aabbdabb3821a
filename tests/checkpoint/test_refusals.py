"""What is no checkpoint, or not a whole one, is refused with a message that says what and what next."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl2.checkpoint import CheckpointError, load_model, resolve, save_checkpoint


@pytest.fixture
def ours(tiny, tmp_path) -> Path:
    save_checkpoint(tiny, tmp_path / "ours")
    return tmp_path / "ours"


def edit_weights(folder: Path, edit) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(state)
    save_file(state, folder / "model.safetensors")


def edit_config(folder: Path, edit) -> None:
    raw = json.loads((folder / "config.json").read_text())
    edit(raw)
    (folder / "config.json").write_text(json.dumps(raw))


class RunsCode:
    """A pickle that makes a file when it is read by a careless reader."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tiny, write_released, tmp_path, as_zip):
    folder = write_released(tiny)
    file, trace = folder / "pytorch_model-2-of-3.bin", tmp_path / "was_here"
    torch.save({"weight": RunsCode(trace)}, file, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(
        CheckpointError, match=r"pytorch_model-2-of-3\.bin was refused.*system.*Nothing of it"
    ):
        load_model(folder, progress=False)
    file.write_bytes(pickle.dumps({"weight": RunsCode(trace)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model-2-of-3\.bin"):
        load_model(folder, progress=False)
    assert not trace.exists()


def test_a_missing_shard_is_named(tiny, write_released):
    folder = write_released(tiny)
    (folder / "pytorch_model-2-of-3.bin").unlink()
    message = r"lacks 1 of 3 shards: pytorch_model-2-of-3\.bin"
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, progress=False)
    (folder / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, progress=False)


def test_a_tensor_that_is_not_where_the_index_says_is_named(tiny, write_released):
    folder = write_released(tiny)
    shard = torch.load(folder / "pytorch_model-1-of-3.bin", weights_only=True)
    shard.pop("model.embed_tokens.weight")
    torch.save(shard, folder / "pytorch_model-1-of-3.bin")
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight in pytorch_model-1-of-3\.bin"):
        load_model(folder, progress=False)


def test_an_index_that_points_outside_its_folder_is_refused(tiny, write_released):
    folder = write_released(tiny)
    index = {"weight_map": {"model.norm.weight": "../../secret.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names files outside of it: \.\./\.\./secret\.bin"):
        load_model(folder, progress=False)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_cut_short_is_named(tiny, tmp_path, write_released, kind):
    if kind == "safetensors":
        save_checkpoint(tiny, tmp_path / "ours")
        file = tmp_path / "ours" / "model.safetensors"
    else:
        file = write_released(tiny, legacy=kind == "legacy") / "pytorch_model-3-of-3.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=rf"{file.name}"):
        load_model(file.parent, progress=False)


def test_an_empty_file_is_named(tiny, write_released):
    folder = write_released(tiny)
    (folder / "pytorch_model-1-of-3.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model-1-of-3\.bin"):
        load_model(folder, progress=False)


def test_a_git_lfs_pointer_is_recognised(ours):
    (ours / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        load_model(ours, progress=False)


def test_a_file_that_is_no_dictionary_of_tensors_is_refused(tiny, write_released):
    folder = write_released(tiny)
    torch.save([torch.ones(2)], folder / "pytorch_model-1-of-3.bin")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_model(folder, progress=False)


def test_missing_and_unexpected_tensors_are_counted_and_named(ours):
    def edit(state):
        for name in [name for name in state if "down_proj" in name or "mlp.fc1" in name]:
            del state[name]
        state["model.strange.weight"] = torch.ones(3, 4)

    edit_weights(ours, edit)
    with pytest.raises(CheckpointError) as caught:
        load_model(ours, progress=False)
    message = str(caught.value)
    assert "6 missing" in message
    assert "and 1 more" in message
    assert "model.layers.0.mlp.down_proj.weight: (64, 172)" in message
    assert "1 unexpected:\n    model.strange.weight: (3, 4)" in message


def test_a_wrong_shape_is_named_with_both_shapes(ours):
    edit_config(ours, lambda raw: raw.update(vocab_size=130))
    with pytest.raises(CheckpointError) as caught:
        load_model(ours, progress=False)
    message = str(caught.value)
    assert "2 of another shape" in message
    assert "lm_head.weight: expected (130, 64), found (128, 64)" in message


def test_a_position_table_of_another_resolution_says_what_image_size_to_set(ours):
    edit_config(ours, lambda raw: raw["visual_config"]["visual_model"].update(image_size=112))
    edit_config(ours, lambda raw: raw["visual_config"]["visual_abstractor"].update(grid_size=8))
    with pytest.raises(CheckpointError) as caught:
        load_model(ours, progress=False)
    message = str(caught.value)
    assert (
        "model.vision_model.embeddings.position_embedding: expected (1, 65, 32), found (1, 17, 32)" in message
    )
    assert "made for 4 x 4 patches" in message
    assert "image_size" in message


def test_integer_weights_are_refused(ours):
    edit_weights(ours, lambda state: state.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"torch\.int8: model\.norm\.weight; quantised"):
        load_model(ours, progress=False)


def test_a_head_that_differs_from_the_tied_embedding_is_refused(ours):
    edit_config(ours, lambda raw: raw.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_model(ours, progress=False)


def test_a_folder_that_is_no_checkpoint_says_what_was_looked_for(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(CheckpointError, match=r"looked for config\.json and weights.*it holds holiday\.jpg"):
        load_model(tmp_path, progress=False)


def test_a_folder_without_weights_says_what_was_looked_for(ours):
    (ours / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no weights: looked for model\.safetensors.*pytorch_model\.bin"
    ):
        load_model(ours, progress=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "is not JSON"),
        ("[]", "holds a list"),
        ('{"model_type": "gpt2"}', "model_type is 'gpt2'"),
        ('{"model_type": "llama"}', "owl2 init --language"),
        ('{"model_type": "clip"}', "owl2 init --vision"),
        ('{"model_type": "mplug_owl2", "hidden_act": "gelu"}', "hidden_act = 'gelu' is not supported"),
        ('{"model_type": "mplug_owl2", "vocab_size": "many"}', "vocab_size = 'many' must be a whole number"),
        (
            '{"model_type": "mplug_owl2", "visual_config": {"visual_model": {"num_channels": 16777216, '
            '"image_size": 16384, "patch_size": 16384}, "visual_abstractor": {"grid_size": 1}}}',
            "no model that can be built",
        ),
        ('{"model_type": "mplug_owl2", "hidden_size": -4}', "must divide hidden_size = -4"),
    ],
)
def test_a_bad_configuration_is_named_with_its_file(ours, content, message):
    (ours / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        load_model(ours, progress=False)


def test_an_unknown_dtype_lists_the_known_ones(ours):
    with pytest.raises(CheckpointError, match="float8 is not one of float32, bfloat16, float16"):
        load_model(ours, dtype="float8", progress=False)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(ours):
    (ours / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(ours, progress=False)


def test_resolve_returns_an_existing_folder(ours):
    assert resolve(str(ours)) == ours


def test_resolve_tells_missing_paths_from_hub_ids(ours, monkeypatch):
    monkeypatch.chdir(ours.parent)
    for given in ("/nowhere/at/all", "nowhere", "./nowhere", "a/b/c", "~/nowhere", "..\\x"):
        with pytest.raises(CheckpointError, match="does not exist; expected a folder, or a hub id"):
            resolve(given)
    with pytest.raises(CheckpointError, match="ours/missing does not exist, though the folder ours does"):
        resolve("ours/missing")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(ours / "config.json")


def test_a_hub_id_without_a_connection_says_how_to_bring_it_here(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf download owner/name --local-dir DIR"):
        resolve("owner/name")

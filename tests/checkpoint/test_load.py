"""Loading a folder: the released layout and ours give the same model, whatever the files look like."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl2.checkpoint import load_model, save_checkpoint
from owl2.model import Owl2Model, build, preset
from owl2.model.config import MamConfig


def same(left: Owl2Model, right: Owl2Model, *, but: tuple[str, ...] = ()) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if not name.endswith(but or ("\0",)))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_released_folder_loads_as_it_is(tiny, write_released, positions, legacy):
    tiny.half().float()  # values that half precision can hold
    folder = write_released(tiny, positions=positions, legacy=legacy)
    loaded = load_model(folder, progress=False)
    # Position buffers that the file has are taken as it has them, rounded to half precision.
    assert same(loaded, tiny.float(), but=("inv_freq", "pos_embed"))
    tolerance = 1e-3 if positions else 0
    for name, value in build("tiny").named_buffers():
        torch.testing.assert_close(dict(loaded.named_buffers())[name], value, atol=tolerance, rtol=0)


def test_shards_without_an_index_are_found_by_their_names(tiny, write_released):
    folder = write_released(tiny)
    expected = load_model(folder, progress=False)
    (folder / "pytorch_model.bin.index.json").unlink()
    assert same(load_model(folder, progress=False), expected)


def test_one_pickled_file_loads(tiny, write_released):
    folder = write_released(tiny, shards=1)
    (folder / "pytorch_model-1-of-1.bin").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin.index.json").unlink()
    tiny.half().float()
    assert same(load_model(folder, progress=False), tiny, but=("inv_freq", "pos_embed"))


def test_safetensors_are_preferred_to_pickles_beside_them(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    (tmp_path / "ours" / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert same(load_model(tmp_path / "ours", progress=False), tiny)


def test_inverse_frequencies_in_a_file_are_ignored(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    for name in state:
        if name.endswith("inv_freq"):
            state[name] += 7
    save_file(state, file)
    assert same(load_model(tmp_path / "ours", progress=False), tiny)


def test_position_buffers_of_a_file_are_used(tiny, tmp_path):
    name = "model.visual_abstractor.encoder.layers.0.crossattention.attention.q_pos_embed"
    tiny.get_buffer(name).add_(1)
    save_checkpoint(tiny, tmp_path / "ours")
    assert same(load_model(tmp_path / "ours", progress=False), tiny)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_type_that_was_asked_for(tiny, tmp_path, dtype):
    save_checkpoint(tiny, tmp_path / "ours")
    loaded = load_model(tmp_path / "ours", dtype=dtype, progress=False)
    wanted = getattr(torch, dtype)
    assert {p.dtype for p in loaded.parameters()} == {wanted}
    weight = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(loaded.get_parameter(weight), tiny.get_parameter(weight).to(wanted))


def test_a_loaded_model_computes_what_the_saved_one_did(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    loaded = load_model(tmp_path / "ours", progress=False)
    image = tiny.config.image_token_id
    ids = torch.tensor([[1, 5, *[image] * tiny.config.tokens_per_image, 9, 11]])
    pixels = torch.randn(1, 3, 56, 56)
    assert torch.equal(loaded(ids, None, pixels), tiny(ids, None, pixels))


def test_a_loaded_model_can_be_trained_and_its_files_stay_as_they_are(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    loaded = load_model(tmp_path / "ours", progress=False)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before


def test_a_loaded_model_outlives_its_folder(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    loaded = load_model(tmp_path / "ours", progress=False)
    shutil.rmtree(tmp_path / "ours")
    assert same(loaded, tiny)


def test_tied_embeddings_are_stored_once_and_a_stored_copy_is_accepted(tmp_path):
    decoder = preset("tiny").decoder.__class__(
        **{**vars(preset("tiny").decoder), "tie_word_embeddings": True}
    )
    model = build(preset("tiny").replace(decoder=decoder))
    save_checkpoint(model, tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}
    assert "lm_head.weight" not in state
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, file)
    assert same(load_model(tmp_path / "ours", progress=False), model)


@pytest.mark.parametrize("mam", [MamConfig(norm=False), MamConfig(norm=False, key=False, value=False)])
def test_models_with_parts_of_mam_switched_off_round_trip(tmp_path, mam):
    model = build(preset("tiny").replace(mam=mam), seed=3)
    save_checkpoint(model, tmp_path / "ours")
    loaded = load_model(tmp_path / "ours", progress=False)
    assert loaded.config == model.config
    assert same(loaded, model)


def test_a_folder_of_the_released_code_loads_whole(golden_folder):
    loaded = load_model(golden_folder, progress=False).state_dict()
    stored = load_file(golden_folder / "model.safetensors")
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items() if "inv_freq" not in name)

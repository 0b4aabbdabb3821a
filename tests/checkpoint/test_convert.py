"""Converting: every tensor of the source arrives bit for bit, and so does everything beside the weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from owl2.checkpoint import CheckpointError, convert, load_model, save_checkpoint
from owl2.checkpoint.tensors import TensorFolder
from owl2.model import build


def tensors(folder) -> dict[str, torch.Tensor]:
    files = TensorFolder(folder)
    return {name: files.read(name) for name in files.files}


def bit_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(
        left[name].dtype == right[name].dtype
        and torch.equal(left[name].contiguous().view(torch.uint8), right[name].contiguous().view(torch.uint8))
        for name in left
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("positions", [False, True])
def test_released_to_ours_is_bit_exact(tiny, write_released, tmp_path, dtype, positions):
    folder = write_released(tiny, dtype=dtype, positions=positions)
    done = convert(folder, tmp_path / "ours", progress=False)
    assert bit_equal(tensors(folder), tensors(tmp_path / "ours"))
    assert done.dtypes == [str(dtype).removeprefix("torch.")]
    assert done.num_tensors == len(tensors(folder))
    assert not list((tmp_path / "ours").glob("*.bin"))


def test_a_round_trip_through_shards_is_bit_exact_even_for_odd_numbers(tiny, write_released, tmp_path):
    with torch.no_grad():
        odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 6e-8, 65504.0])
        tiny.model.norm.weight[:6] = odd
    folder = write_released(tiny)
    convert(folder, tmp_path / "once", max_shard_bytes=100_000, progress=False)
    convert(tmp_path / "once", tmp_path / "twice", progress=False)
    assert len(list((tmp_path / "once").glob("*.safetensors"))) > 3
    assert bit_equal(tensors(folder), tensors(tmp_path / "twice"))


def test_the_converted_folder_loads_as_the_source_does(tiny, write_released, tmp_path):
    folder = write_released(tiny)
    convert(folder, tmp_path / "ours", progress=False)
    before, after = (load_model(f, progress=False).state_dict() for f in (folder, tmp_path / "ours"))
    assert bit_equal(before, after)


def test_unknown_fields_and_other_files_are_kept(tiny, write_released, tmp_path):
    folder = write_released(tiny)
    raw = json.loads((folder / "config.json").read_text())
    raw["image_aspect_ratio"] = "pad"
    raw["visual_config"]["visual_model"]["attention_dropout"] = 0.0
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "preprocessor_config.json").write_text('{"size": 56}')
    (folder / "generation_config.json").write_text('{"temperature": 0.2}')
    done = convert(folder, tmp_path / "ours", progress=False)
    assert done.copied_files == ["generation_config.json", "preprocessor_config.json", "tokenizer.model"]
    for name in done.copied_files:
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["image_aspect_ratio"] == "pad"
    assert written["visual_config"]["visual_model"]["attention_dropout"] == 0.0


def test_a_type_that_was_asked_for_is_stated_in_the_configuration(tiny, tmp_path):
    save_checkpoint(tiny, tmp_path / "ours")
    done = convert(tmp_path / "ours", tmp_path / "half", dtype="bfloat16", progress=False)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert done.num_bytes == sum(t.nbytes for t in tiny.state_dict().values()) // 2
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_source_that_does_not_fit_its_configuration_is_not_converted(tiny, write_released, tmp_path):
    folder = write_released(tiny)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match="does not fit"):
        convert(folder, tmp_path / "ours", progress=False)
    assert not (tmp_path / "ours").exists()


def test_the_source_itself_is_no_target(tmp_path):
    save_checkpoint(build("tiny"), tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is the source itself"):
        convert(tmp_path / "ours", tmp_path / "." / "ours", progress=False)

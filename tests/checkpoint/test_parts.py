"""Pretrained parts: what our model computes with them is what `transformers` computes, to 1e-5."""

import json
from pathlib import Path

import pytest
import torch

from owl2.checkpoint import CheckpointError, assemble, load_model, save_checkpoint
from owl2.checkpoint.assemble import read_language, read_vision
from owl2.model import build, padded_layout
from owl2.model.config import MamConfig
from owl2.model.decoder import rotary_frequencies

transformers = pytest.importorskip("transformers")

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 70,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases too, which `transformers` starts at one and zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def clip(folder: Path, *, whole: bool = False, act: str = "quick_gelu") -> torch.nn.Module:
    vision = {**VIT, "intermediate_size": 64, "hidden_act": act}
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text |= {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
        model = randomise(transformers.CLIPModel(config))
    else:
        model = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)))
    model.save_pretrained(folder)
    return model.vision_model if whole else model


def dinov2(folder: Path, **changes) -> torch.nn.Module:
    model = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**{**VIT, **changes})))
    model.save_pretrained(folder)
    return model


def llama(folder: Path, *, shard: str = "5GB", **changes) -> torch.nn.Module:
    config = transformers.LlamaConfig(**{**LLAMA, "num_key_value_heads": 4, **changes})
    model = randomise(transformers.LlamaForCausalLM(config))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.mark.parametrize(("whole", "act"), [(False, "quick_gelu"), (True, "quick_gelu"), (False, "gelu")])
@torch.no_grad()
def test_clip_gives_the_same_features(tmp_path, whole, act):
    theirs = clip(tmp_path / "clip", whole=whole, act=act)
    llama(tmp_path / "llama")
    made = assemble(vision=tmp_path / "clip", language=tmp_path / "llama", queries=4, progress=False)
    pixels = torch.randn(2, 3, 56, 56)
    expected = theirs.post_layernorm(theirs(pixels).last_hidden_state)
    torch.testing.assert_close(made.model.model.vision_model(pixels), expected, atol=1e-5, rtol=0)
    assert made.model.config.vision.layer_norm_eps == 1e-5
    unused = made.unused[f"{tmp_path / 'clip'} (CLIP)"]
    assert any(name.startswith("text_model.") for name in unused) == whole


@pytest.mark.parametrize("side", [56, 112])
@torch.no_grad()
def test_dinov2_gives_the_same_features_at_any_resolution(tmp_path, side):
    theirs = dinov2(tmp_path / "dino")
    llama(tmp_path / "llama")
    made = assemble(vision=tmp_path / "dino", language=tmp_path / "llama", queries=4, progress=False)
    pixels = torch.randn(2, 3, side, side)
    expected = theirs(pixels).last_hidden_state
    torch.testing.assert_close(made.model.model.vision_model(pixels), expected, atol=1e-5, rtol=0)
    assert made.normalisation[0] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"tie_word_embeddings": True},
        {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"head_dim": 16, "shard": "8KB"},
    ],
    ids=["plain", "grouped-query", "tied", "llama3", "sharded"],
)
@torch.no_grad()
def test_llama_gives_the_same_logits_for_text(tmp_path, changes):
    clip(tmp_path / "clip")
    theirs = llama(tmp_path / "llama", **changes)
    made = assemble(vision=tmp_path / "clip", language=tmp_path / "llama", queries=4, progress=False)
    ids = torch.randint(3, 70, (2, 50))
    torch.testing.assert_close(made.model(ids), theirs(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_visual_weights_start_as_a_copy_of_the_text_weights(tmp_path):
    clip(tmp_path / "clip")
    theirs = llama(tmp_path / "llama", num_key_value_heads=2)
    model = assemble(vision=tmp_path / "clip", language=tmp_path / "llama", queries=4, progress=False).model
    copies = [name for name, _ in model.named_parameters() if ".multiway.1." in name]
    assert len(copies) == 4 * LLAMA["num_hidden_layers"]
    for name in copies:
        visual, text = (
            model.get_parameter(name),
            model.get_parameter(name.replace("multiway.1", "multiway.0")),
        )
        assert torch.equal(text, visual)
        assert text.data_ptr() != visual.data_ptr()
    # So the decoder treats an image's tokens as it treats text: the plain LLaMA on the same embeddings.
    image = model.config.image_token_id
    ids = torch.tensor([[1, 5, *[image] * model.config.tokens_per_image, 9, 11]])
    layout = padded_layout(ids, None, image)
    embeddings = model.embed(ids, layout, torch.randn(1, 3, 56, 56))
    expected = theirs(inputs_embeds=embeddings[None]).logits[0]
    torch.testing.assert_close(model.logits(model.hidden(embeddings, layout)), expected, atol=1e-5, rtol=0)


def test_the_abstractor_is_initialised_as_documented_and_by_seed(tmp_path):
    clip(tmp_path / "clip")
    llama(tmp_path / "llama")
    parts = {"vision": tmp_path / "clip", "language": tmp_path / "llama"}
    first, second, other = (
        assemble(**parts, queries=7, abstractor_layers=2, seed=seed, progress=False).model
        for seed in (3, 3, 4)
    )
    config = first.config.abstractor
    assert (config.num_learnable_queries, config.num_hidden_layers, config.intermediate_size) == (7, 2, 88)
    queries = "model.visual_abstractor.query_embeds"
    assert torch.equal(first.get_parameter(queries), second.get_parameter(queries))
    assert not torch.equal(first.get_parameter(queries), other.get_parameter(queries))
    expected = build(first.config, seed=3).model.visual_abstractor.state_dict()
    ours = first.model.visual_abstractor.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in expected.items())


@torch.no_grad()
def test_another_image_size_is_built_in_by_interpolation(tmp_path):
    theirs = dinov2(tmp_path / "dino")
    llama(tmp_path / "llama")
    parts = {"vision": tmp_path / "dino", "language": tmp_path / "llama"}
    model = assemble(**parts, queries=4, image_size=112, progress=False).model
    assert model.config.vision.image_size == 112
    pixels = torch.randn(1, 3, 112, 112)
    expected = theirs(pixels).last_hidden_state
    torch.testing.assert_close(model.model.vision_model(pixels), expected, atol=1e-5, rtol=0)
    save_checkpoint(model, tmp_path / "ours")
    loaded = load_model(tmp_path / "ours", progress=False)
    assert torch.equal(loaded.encode_images(pixels), model.encode_images(pixels))
    with pytest.raises(CheckpointError, match="image_size 100 does not fit"):
        assemble(**parts, image_size=100, progress=False)


@torch.no_grad()
def test_the_first_layers_of_an_encoder_can_be_taken_alone(tmp_path):
    theirs = dinov2(tmp_path / "dino")
    llama(tmp_path / "llama")
    parts = {"vision": tmp_path / "dino", "language": tmp_path / "llama"}
    made = assemble(**parts, queries=4, vision_layers=2, progress=False)
    pixels = torch.randn(1, 3, 56, 56)
    expected = theirs.layernorm(theirs(pixels, output_hidden_states=True).hidden_states[2])
    torch.testing.assert_close(made.model.model.vision_model(pixels), expected, atol=1e-5, rtol=0)
    assert "the first 2 of 3 layers" in made.origins[0][1]
    with pytest.raises(CheckpointError, match="vision_layers 4 is not in 1 to 3"):
        assemble(**parts, vision_layers=4, progress=False)


def test_a_model_without_mam_has_the_language_models_own_names(tmp_path):
    clip(tmp_path / "clip")
    llama(tmp_path / "llama")
    parts = {"vision": tmp_path / "clip", "language": tmp_path / "llama"}
    model = assemble(
        **parts, queries=4, mam=MamConfig(norm=False, key=False, value=False), progress=False
    ).model
    assert not [name for name in model.state_dict() if "multiway" in name]


def test_weights_have_the_type_that_was_asked_for_and_parameters_are_all_counted(tmp_path):
    clip(tmp_path / "clip")
    llama(tmp_path / "llama", dtype=torch.float16)
    parts = {"vision": tmp_path / "clip", "language": tmp_path / "llama"}
    made = assemble(**parts, queries=4, dtype="bfloat16", progress=False)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    assert sum(count for *_, count in made.origins) == sum(p.numel() for p in made.model.parameters())


def test_tokenizer_files_of_the_language_model_come_along(tmp_path):
    llama(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.model").write_bytes(b"pieces")
    (tmp_path / "llama" / "tokenizer_config.json").write_text("{}")
    files = read_language(tmp_path / "llama").tokenizer_files
    assert files == {"tokenizer.model": b"pieces", "tokenizer_config.json": b"{}"}


def test_an_encoders_own_normalisation_is_read(tmp_path):
    clip(tmp_path / "clip")
    assert read_vision(tmp_path / "clip").normalisation[0] == (0.48145466, 0.4578275, 0.40821073)
    raw = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(raw))
    assert read_vision(tmp_path / "clip").normalisation == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_llama3_frequencies_are_those_of_transformers(tmp_path):
    theirs = llama(tmp_path / "llama", rope_parameters=LLAMA3_ROPE)
    ours = rotary_frequencies(read_language(tmp_path / "llama").config)
    torch.testing.assert_close(ours, theirs.model.rotary_emb.inv_freq, atol=0, rtol=1e-6)


def edit(folder: Path, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "is a 'mistral'; expected a 'llama'"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not one of default, llama3"),
        ({"num_hidden_layers": 3}, r"lacks 9 tensors: model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"has 9 tensors that its reader does not know: model\.layers\.1\."),
        ({"tie_word_embeddings": True}, None),
    ],
)
def test_a_language_model_with_other_features_is_refused(tmp_path, changes, message):
    llama(tmp_path / "llama")
    edit(tmp_path / "llama", **changes)
    if message is None:
        assert read_language(tmp_path / "llama").unused == ["lm_head.weight"]
        return
    with pytest.raises(CheckpointError, match=message):
        read_language(tmp_path / "llama")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "is a 'siglip'; expected a vision encoder: clip"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"hidden_act": "relu"}, "vision.hidden_act = 'relu' must be one of quick_gelu, gelu"),
        ({"num_hidden_layers": 4}, r"lacks 18 tensors: encoder\.layer\.3\."),
    ],
)
def test_an_encoder_with_other_features_is_refused(tmp_path, changes, message):
    dinov2(tmp_path / "dino")
    edit(tmp_path / "dino", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_vision(tmp_path / "dino")


def test_a_wrong_shape_in_a_part_is_named(tmp_path):
    clip(tmp_path / "clip")
    llama(tmp_path / "llama")
    edit(tmp_path / "llama", vocab_size=71)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: expected \(71, 32\), found \(70, 32\)"):
        assemble(vision=tmp_path / "clip", language=tmp_path / "llama", queries=4, progress=False)


def test_a_path_that_is_no_part_is_named(tmp_path):
    for read in (read_vision, read_language):
        with pytest.raises(CheckpointError, match=r"nowhere does not exist"):
            read(tmp_path / "nowhere")

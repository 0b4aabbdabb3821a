"""GGUF files: the model inside is the one that was written, up to quantisation, and so is its tokenizer."""

import io
import json
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from owl2.checkpoint import CheckpointError, assemble
from owl2.checkpoint.gguf import GGUFFile, halves_from_pairs, read_gguf
from owl2.model import build, preset
from owl2.model.config import DecoderConfig, RopeScaling
from owl2.model.decoder import rotary_frequencies
from owl2.processor.tokenizer import load_tokenizer

gguf = pytest.importorskip("gguf")
Q4_1, Q8_0, F16 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "F16"))

CONFIG = DecoderConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEXTS = [
    "Hello world, hello owls!",
    " leading and  double spaces ",
    "I'm 1234 years old; you'll see 3.14159",
    "tab\tand\nnew\n\nlines",
    "naïve café – 你好 🦉 Ωmega",
    "",
]


def pairs_from_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def language_state(config: DecoderConfig) -> dict[str, torch.Tensor]:
    """A random plain decoder's weights, by LLaMA's names."""
    off = {"norm": False, "key": False, "value": False}
    mam = preset("tiny").mam.__class__(**off)
    model = build(preset("tiny").replace(decoder=config, mam=mam), seed=5)
    state = {n: p for n, p in model.state_dict().items() if "vis" not in n and "inv_freq" not in n}
    for name, value in state.items():
        if "norm" in name:
            value.uniform_(0.5, 1.5)
    return state


def write_gguf(
    file: Path, *, tokenizer: dict, config: DecoderConfig = CONFIG, kind=None, extra=None, **fields
) -> dict:
    """Write a random model as llama.cpp's converter would; return its weights by LLaMA's names."""
    state = language_state(config)
    writer = gguf.GGUFWriter(file, fields.pop("arch", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    for key, value in tokenizer.items():
        getattr(writer, f"add_{key}")(value)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names["lm_head.weight"] = "output.weight"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for i in range(config.num_hidden_layers):
        names |= {
            f"model.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for theirs, ours in LAYER.items()
        }
    for name, tensor in state.items():
        theirs, value = names[name], tensor.numpy()
        short = theirs.split(".")[-2]
        if short in heads:
            value = pairs_from_halves(value, heads[short])
        quantised = kind is not None and value.ndim == 2
        data = gguf.quants.quantize(value, kind) if quantised else value
        writer.add_tensor(theirs, data, raw_dtype=kind if quantised else None)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state


@pytest.fixture(scope="module")
def bpe() -> dict:
    """A small byte-level BPE as GGUF holds it, with the digits rule of SmolLM2."""
    tokenizer = trained_byte_level()
    model = json.loads(tokenizer.to_str())["model"]
    by_id = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "smollm",
        "token_list": by_id,
        "token_types": [3, 3, 3] + [1] * (len(by_id) - 3),
        "token_merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
        "pad_token_id": 2,
        "add_bos_token": False,
        "chat_template": "{{ messages }}",
    }


def trained_byte_level() -> Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    digits, words = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


@pytest.mark.parametrize(("kind", "tolerance"), [(None, 0), (F16, 1e-3), (Q8_0, 1e-2), (Q4_1, 1e-1)])
def test_weights_are_those_that_were_written_up_to_quantisation(tmp_path, bpe, kind, tolerance):
    config = DecoderConfig(**{**vars(CONFIG), "vocab_size": len(bpe["token_list"])})
    state = write_gguf(tmp_path / "model.gguf", tokenizer=bpe, config=config, kind=kind)
    part = read_gguf(tmp_path / "model.gguf")
    assert part.config == config
    assert part.recipes.keys() == state.keys()
    for name, expected in state.items():
        torch.testing.assert_close(part.read(name), expected, atol=tolerance, rtol=0)


def test_dequantised_tensors_are_those_of_the_gguf_package(tmp_path, bpe):
    write_gguf(tmp_path / "model.gguf", tokenizer=bpe, kind=Q4_1)
    ours = GGUFFile(tmp_path / "model.gguf")
    theirs = gguf.GGUFReader(tmp_path / "model.gguf")
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        assert np.array_equal(ours.read(tensor.name).numpy(), expected)
    for name, field in theirs.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents()


def test_query_and_key_rows_come_back_in_llamas_order():
    weight = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    assert np.array_equal(halves_from_pairs(torch.from_numpy(pairs_from_halves(weight, 3)), 3), weight)


@torch.no_grad()
def test_a_gguf_model_computes_what_transformers_does(tmp_path, bpe):
    transformers = pytest.importorskip("transformers")
    config = DecoderConfig(**{**vars(CONFIG), "tie_word_embeddings": False})
    state = write_gguf(tmp_path / "model.gguf", tokenizer=bpe, config=config)
    raw = {k: v for k, v in vars(config).items() if k not in ("rope_theta", "rope_scaling")}
    raw["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw)).eval()
    theirs.load_state_dict(state)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    clip = transformers.CLIPVisionConfig(**vision, image_size=56, patch_size=14)
    transformers.utils.logging.disable_progress_bar()
    transformers.CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
    made = assemble(vision=tmp_path / "clip", language=tmp_path / "model.gguf", queries=4, progress=False)
    ids = torch.randint(3, 96, (2, 40))
    torch.testing.assert_close(made.model(ids), theirs(ids).logits, atol=1e-5, rtol=0)


def test_llama3s_frequencies_are_recognised_by_their_divisors(tmp_path, bpe):
    scaling = RopeScaling(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    scaled = DecoderConfig(**{**vars(CONFIG), "rope_scaling": scaling})
    divisors = (rotary_frequencies(CONFIG) / rotary_frequencies(scaled)).numpy()
    write_gguf(tmp_path / "llama3.gguf", tokenizer=bpe, extra={"rope_freqs.weight": divisors})
    assert read_gguf(tmp_path / "llama3.gguf").config.rope_scaling == scaling
    write_gguf(
        tmp_path / "odd.gguf",
        tokenizer=bpe,
        extra={"rope_freqs.weight": divisors * np.arange(1, 9, dtype=np.float32)},
    )
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is not Llama 3's rescaling"):
        read_gguf(tmp_path / "odd.gguf")


def rebuilt(folder: Path, files: dict[str, bytes]) -> Tokenizer:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def test_a_byte_level_tokenizer_is_rebuilt(tmp_path, bpe):
    write_gguf(tmp_path / "model.gguf", tokenizer=bpe)
    files = read_gguf(tmp_path / "model.gguf").tokenizer_files
    ours, theirs = rebuilt(tmp_path, files), trained_byte_level()
    for text in [*TEXTS, "<|im_start|>user\nHi<|im_end|>"]:
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    config = json.loads(files["tokenizer_config.json"])
    assert (config["eos_token"], config["pad_token"]) == ("<|im_end|>", "<|im_end|>")
    assert config["chat_template"] == "{{ messages }}"
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.add_bos) == (2, 2, False)
    assert tokenizer.decode(tokenizer.encode(TEXTS[4])) == TEXTS[4]


def test_a_sentencepiece_tokenizer_is_rebuilt(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if text] * 20),
        model_writer=model,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.get_piece_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    vocabulary = {
        "tokenizer_model": "llama",
        "token_list": [theirs.id_to_piece(i) for i in ids],
        "token_scores": [theirs.get_score(i) for i in ids],
        "token_types": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
    }
    write_gguf(tmp_path / "model.gguf", tokenizer=vocabulary)
    ours = rebuilt(tmp_path, read_gguf(tmp_path / "model.gguf").tokenizer_files)
    for text in [*TEXTS, "unseen words: zebra xylophone ✓", "hello hello world world"]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)
        assert ours.encode(text).ids[0] == 1
        assert ours.decode(ours.encode(text).ids) == text
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.add_bos, tokenizer.dummy_space) == (1, True, True)
    assert tokenizer.decode(tokenizer.encode(TEXTS[4])) == TEXTS[4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "qwen2"}, "has the architecture 'qwen2'; expected 'llama'"),
        ({"key_length": 24}, "rope.dimension_count = 16 differs from the head dimension 24"),
        ({"rope_scaling_type": gguf.RopeScalingType.YARN}, "rope scaling 'yarn' is not supported"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, r"does not know: blk\.0\.attn_q\.bias"),
    ],
)
def test_a_gguf_model_with_other_features_is_refused(tmp_path, bpe, fields, message):
    write_gguf(tmp_path / "model.gguf", tokenizer=bpe, **fields)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_pre": "tekken"}, "pre-tokenizer 'tekken' is not one of default, gpt-2, smollm"),
        ({"tokenizer_model": "bert"}, "of the kind 'bert'; expected gpt2 or llama"),
    ],
)
def test_an_unknown_tokenizer_is_refused(tmp_path, bpe, changes, message):
    write_gguf(tmp_path / "model.gguf", tokenizer={**bpe, **changes})
    with pytest.raises(CheckpointError, match=message):
        read_gguf(tmp_path / "model.gguf")


def test_a_damaged_gguf_file_is_named(tmp_path, bpe):
    file = tmp_path / "model.gguf"
    write_gguf(file, tokenizer=bpe)
    whole = file.read_bytes()
    for content, message in (
        (b"", "damaged or cut short"),
        (b"PK\3\4" + whole[4:], "not a GGUF file"),
        (whole[:500], "damaged or cut short"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_gguf(file)
    file.write_bytes(whole[:-100])
    part = read_gguf(file)
    with pytest.raises(CheckpointError, match="is cut short"):
        part.read("model.norm.weight")


def test_a_gguf_file_with_any_bytes_in_its_header_is_read_or_an_error(tmp_path, bpe):
    file, rng = tmp_path / "model.gguf", random.Random(0)
    write_gguf(file, tokenizer=bpe, config=DecoderConfig(**{**vars(CONFIG), "vocab_size": 400}))
    whole = file.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        begin = rng.randrange(whole.index(b"blk.0.attn_norm.weight") + 1000)
        damaged[begin : begin + rng.randrange(1, 5)] = rng.randbytes(rng.randrange(1, 5))
        file.write_bytes(damaged)
        with suppress(CheckpointError):
            read_gguf(file).read("model.norm.weight")


@pytest.mark.parametrize("field", ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"])
def test_a_damaged_vocabulary_is_named_with_its_file(tmp_path, bpe, field):
    file = tmp_path / "model.gguf"
    write_gguf(file, tokenizer=bpe, config=DecoderConfig(**{**vars(CONFIG), "vocab_size": 400}))
    file.write_bytes(file.read_bytes().replace(field.encode(), field[:-1].encode() + b"?"))
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        read_gguf(file)

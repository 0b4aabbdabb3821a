"""LLaMA-family decoders in the Hugging Face layout (LLaMA 1-3, SmolLM2, ...): weights and tokenizer files.

The names are ours already except for the modality-adaptive parameters, which assemble.py makes. Features that
the decoder lacks (other activations, biases, RoPE scalings other than Llama 3's) are refused, never dropped.
"""

from pathlib import Path

from owl2.checkpoint.ends import with_generation_ends
from owl2.checkpoint.errors import CheckpointError
from owl2.checkpoint.parts import LanguagePart, Recipe, account
from owl2.checkpoint.tensors import TensorFolder
from owl2.files import read_json
from owl2.model.config import ConfigError, DecoderConfig, decoder_from_dict

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


def read_llama(folder: Path) -> LanguagePart:
    """Read a LLaMA-family folder.

    Raises:
        CheckpointError: another kind of model, missing or unknown tensors, or an unsupported feature.
    """
    raw = read_json(folder / "config.json", CheckpointError)
    if raw.get("model_type") != "llama":
        raise CheckpointError(f"{folder} is a {raw.get('model_type')!r}; expected a 'llama' language model")
    fixed = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, value in fixed.items():
        if raw.get(key, value) != value:
            raise CheckpointError(f"{folder}: {key} = {raw[key]!r} is not supported; expected {value!r}")
    try:
        config = with_generation_ends(decoder_from_dict(raw), folder)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    files = TensorFolder(folder)
    recipes = {name: Recipe((name,)) for name in tensor_names(config)}
    where = f"{folder} (LLaMA)"
    foreign = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config.num_hidden_layers)]
    if config.tie_word_embeddings:
        foreign.append("lm_head.weight")
    return LanguagePart(
        origin=where,
        config=config,
        recipes=recipes,
        read_source=files.read,
        tokenizer_files=read_tokenizer_files(folder),
        unused=account(files.files, recipes, foreign, where),
    )


def tensor_names(config: DecoderConfig) -> list[str]:
    """Return LLaMA's tensor names in the Hugging Face layout."""
    layers = [
        f"model.layers.{i}.{matrix}.weight" for i in range(config.num_hidden_layers) for matrix in MATRICES
    ]
    head = [] if config.tie_word_embeddings else ["lm_head.weight"]
    return ["model.embed_tokens.weight", *layers, "model.norm.weight", *head]


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the tokenizer files of a folder by name."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}

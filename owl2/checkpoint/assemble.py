"""A new mPLUG-Owl2 from a pretrained vision encoder and language model, before any training.

The vision encoder and the language model are copied; the visual weights of every modality-adaptive module
start as copies of its text weights, as in stage 1 of the paper; the abstractor is initialised as
`Owl2Model.init_weights` documents. Its shape follows the released one: width and heads of the encoder, an FFN
of 2.75 times the width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import Parameter

from owl2.checkpoint.clip import read_clip
from owl2.checkpoint.dinov2 import read_dinov2, read_dinov2_onnx
from owl2.checkpoint.errors import CheckpointError, check_fit
from owl2.checkpoint.gguf import read_gguf
from owl2.checkpoint.llama import read_llama
from owl2.checkpoint.parts import LanguagePart, VisionPart
from owl2.checkpoint.progress import bytes_bar
from owl2.checkpoint.tensors import dtype_of
from owl2.checkpoint.write import save_checkpoint
from owl2.files import read_json
from owl2.model import ConfigError, Owl2Config, Owl2Model, build
from owl2.model.config import AbstractorConfig, MamConfig
from owl2.processor.transform import CONFIG_NAME, RGB, ImageTransform

VISION_READERS = {"clip": read_clip, "clip_vision_model": read_clip, "dinov2": read_dinov2}
"""By `model_type` of the folder's `config.json`."""

FFN_RATIO = 2.75
VISION, ABSTRACTOR = "model.vision_model.", "model.visual_abstractor."


@dataclass(frozen=True)
class Assembled:
    """A new model, its tokenizer files, and the origin of every part."""

    model: Owl2Model
    tokenizer_files: Mapping[str, bytes]
    normalisation: tuple[RGB, RGB]
    """Mean and standard deviation of the pixels that the vision encoder was trained with."""
    origins: Sequence[tuple[str, str, int]]
    """Rows of (part, origin, number of parameters)."""
    unused: Mapping[str, Sequence[str]]
    """Tensors of each source that the model has no place for."""

    def save(self, folder: Path) -> None:
        """Write the checkpoint folder, tokenizer and preprocessor files included.

        Raises:
            CheckpointError: see `save_checkpoint`.
        """
        mean, std = self.normalisation
        transform = ImageTransform(size=self.model.config.vision.image_size, mean=mean, std=std)
        preprocessor = json.dumps(transform.to_dict(), indent=2).encode()
        files = {**self.tokenizer_files, CONFIG_NAME: preprocessor}
        save_checkpoint(self.model, folder, files=files)


def assemble(
    *,
    vision: Path,
    language: Path,
    queries: int = 64,
    abstractor_layers: int = 6,
    image_size: int | None = None,
    vision_layers: int | None = None,
    mam: MamConfig | None = None,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    progress: bool = True,
) -> Assembled:
    """Make a model from pretrained parts.

    Args:
        vision: a CLIP or DINOv2 folder (Hugging Face layout), or an `.onnx` file with a DINOv2 inside.
        language: a LLaMA-family folder (Hugging Face layout), or a `.gguf` file.
        queries: visual tokens of an image, without the end-of-image vector.
        abstractor_layers: layers of the visual abstractor.
        image_size: side in pixels; if it is not the encoder's own, the positions are interpolated.
        vision_layers: keep only this many of the encoder's layers, from the input.
        mam: which parts are modality-adaptive; all of them if not given.
        dtype: the type of all weights.
        seed: for the abstractor's weights.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: a part cannot be read, or does not fit.
    """
    vision_part, language_part = read_vision(vision), read_language(language)
    config = _config(
        vision_part, language_part, queries, abstractor_layers, vision_layers, mam or MamConfig()
    )
    model = build(config, dtype=dtype_of(dtype), seed=seed)
    copies = _copies(model, vision_part, language_part)
    total = sum(parameter.nbytes for parameter, *_ in copies)
    with bytes_bar("Copying weights", total, enabled=progress) as advance, torch.no_grad():
        for parameter, part, name in copies:
            tensor = part.read(name)
            check_fit({name: tuple(parameter.shape)}, {name: tuple(tensor.shape)}, part.origin)
            parameter.copy_(tensor)
            advance(parameter.nbytes)
    model.copy_text_to_vision()
    if image_size is not None:
        try:
            model.set_image_size(image_size)
        except ConfigError as error:
            raise CheckpointError(
                f"image_size {image_size} does not fit {vision_part.origin}: {error}"
            ) from error
    return Assembled(
        model=model.eval(),
        tokenizer_files=language_part.tokenizer_files,
        normalisation=vision_part.normalisation,
        origins=_origins(model, vision_part, language_part, seed),
        unused={vision_part.origin: vision_part.unused, language_part.origin: language_part.unused},
    )


def read_vision(path: Path) -> VisionPart:
    """Read a vision encoder: a CLIP or DINOv2 folder, or an `.onnx` file with a DINOv2 inside.

    Raises:
        CheckpointError: neither, or one with a feature that our encoder lacks.
    """
    _check_exists(path)
    try:
        if path.suffix == ".onnx":
            return read_dinov2_onnx(path)
        raw = read_json(path / "config.json", CheckpointError)
        kind = raw.get("model_type")
        if kind in VISION_READERS:
            return VISION_READERS[kind](path, raw)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(f"{path} is a {kind!r}; expected a vision encoder: {', '.join(VISION_READERS)}")


def read_language(path: Path) -> LanguagePart:
    """Read a LLaMA-family language model: a folder, or a `.gguf` file.

    Raises:
        CheckpointError: neither, or one with a feature that our decoder lacks.
    """
    _check_exists(path)
    return read_gguf(path) if path.suffix == ".gguf" else read_llama(path)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; parts are read from local folders and files")


def _config(
    vision_part: VisionPart,
    language_part: LanguagePart,
    queries: int,
    abstractor_layers: int,
    vision_layers: int | None,
    mam: MamConfig,
) -> Owl2Config:
    available = vision_part.config.num_hidden_layers
    if not 1 <= (vision_layers or available) <= available:
        raise CheckpointError(
            f"vision_layers {vision_layers} is not in 1 to {available}, the layers of {vision_part.origin}"
        )
    vision = replace(vision_part.config, num_hidden_layers=vision_layers or available)
    abstractor = AbstractorConfig(
        num_learnable_queries=queries,
        hidden_size=vision.hidden_size,
        num_hidden_layers=abstractor_layers,
        num_attention_heads=vision.num_attention_heads,
        intermediate_size=int(vision.hidden_size * FFN_RATIO),
    )
    return Owl2Config(vision=vision, abstractor=abstractor, decoder=language_part.config, mam=mam)


def _copies(
    model: Owl2Model, vision_part: VisionPart, language_part: LanguagePart
) -> list[tuple[Parameter, VisionPart | LanguagePart, str]]:
    """Pair each parameter that is copied with the part it comes from and its name there."""
    pairs: list[tuple[Parameter, VisionPart | LanguagePart, str]] = []
    for name, parameter in model.named_parameters():
        if name.startswith(VISION):
            pairs.append((parameter, vision_part, name.removeprefix(VISION)))
        elif not name.startswith(ABSTRACTOR) and ".multiway.1." not in name:
            pairs.append((parameter, language_part, name.replace(".multiway.0.", ".")))
    return pairs


def _origins(
    model: Owl2Model, vision_part: VisionPart, language_part: LanguagePart, seed: int
) -> list[tuple[str, str, int]]:
    counts = {"vision": 0, "abstractor": 0, "text": 0, "visual": 0}
    for name, parameter in model.named_parameters():
        if name.startswith(VISION):
            counts["vision"] += parameter.numel()
        elif name.startswith(ABSTRACTOR):
            counts["abstractor"] += parameter.numel()
        else:
            counts["visual" if ".multiway.1." in name else "text"] += parameter.numel()
    kept, available = model.config.vision.num_hidden_layers, vision_part.config.num_hidden_layers
    cut = f", the first {kept} of {available} layers" if kept < available else ""
    return [
        ("vision encoder", vision_part.origin + cut, counts["vision"]),
        ("visual abstractor", f"random, seed {seed}", counts["abstractor"]),
        ("decoder, shared and text weights", language_part.origin, counts["text"]),
        ("decoder, visual weights", "copy of the text weights", counts["visual"]),
    ]

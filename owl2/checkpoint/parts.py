"""A pretrained part as its reader returns it: a configuration, and a recipe for every tensor.

A vision part has our names under `model.vision_model.`; a language part those of LLaMA in the Hugging Face
layout, which are ours except for the modality-adaptive parameters. A reader accounts for every tensor in its
files: used, or known to belong to something else (a text tower, a saliency head). Anything left over is an
error, because an unknown tensor may change what the model computes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError, first_few
from owl2.checkpoint.tensors import TensorFolder
from owl2.files import read_json
from owl2.model.config import DecoderConfig, VisionConfig
from owl2.processor.images import ImageError
from owl2.processor.transform import CLIP_MEAN, CLIP_STD, CONFIG_NAME, RGB, normalisation

CLIP_NORMALISATION = (CLIP_MEAN, CLIP_STD)
IMAGENET_NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Recipe:
    """How one of our tensors is made: the names in the file, and what to do with their values."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class VisionPart:
    """A pretrained vision encoder."""

    origin: str
    """The folder or file, and what kind of model it is."""
    config: VisionConfig
    recipes: Mapping[str, Recipe]
    """By our names, without `model.vision_model.`."""
    read_source: Callable[[str], Tensor]
    normalisation: tuple[RGB, RGB]
    """Mean and standard deviation of the pixels that the encoder was trained with, in 0..1."""
    unused: Sequence[str]
    """Tensors of the file that are not the encoder's."""

    def read(self, name: str) -> Tensor:
        """Make one of our tensors."""
        return _make(self.recipes[name], self.read_source)


@dataclass(frozen=True)
class LanguagePart:
    """A pretrained decoder of the LLaMA family and its tokenizer."""

    origin: str
    config: DecoderConfig
    recipes: Mapping[str, Recipe]
    """By LLaMA's names in the Hugging Face layout."""
    read_source: Callable[[str], Tensor]
    tokenizer_files: Mapping[str, bytes]
    unused: Sequence[str]

    def read(self, name: str) -> Tensor:
        """Make one tensor."""
        return _make(self.recipes[name], self.read_source)


def account(
    found: Iterable[str], recipes: Mapping[str, Recipe], foreign: Sequence[str], where: str
) -> list[str]:
    """Return the tensors of `found` that no recipe uses; all must begin with one of `foreign`.

    Raises:
        CheckpointError: a source is missing, or a tensor is neither used nor foreign.
    """
    found = list(found)
    used = {source for recipe in recipes.values() for source in recipe.sources}
    missing = sorted(used.difference(found))
    if missing:
        raise CheckpointError(f"{where} lacks {len(missing)} tensors: {first_few(missing)}")
    unused = [name for name in found if name not in used]
    unknown = [name for name in unused if not name.startswith(tuple(foreign))]
    if unknown:
        raise CheckpointError(
            f"{where} has {len(unknown)} tensors that its reader does not know: {first_few(unknown)}; "
            "they may change what the model computes, so it is not read"
        )
    return unused


def affine(ours: str, theirs: str) -> dict[str, Recipe]:
    """Recipes for the weight and bias of a linear, convolution or LayerNorm."""
    return {f"{ours}.{kind}": Recipe((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}


def encoder_layers(
    layers: str, qkv: tuple[str, str, str], modules: Mapping[str, str], config: VisionConfig
) -> dict[str, Recipe]:
    """Recipes for all layers of an encoder, except LayerScale.

    Args:
        layers: their name of the list of layers.
        qkv: their names of the query, key and value projections of a layer.
        modules: their names of the other modules of a layer, by ours.
    """
    recipes: dict[str, Recipe] = {}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{i}", f"{layers}.{i}"
        query, key, value = (f"{theirs}.{name}" for name in qkv)
        fused = f"{ours}.self_attn.query_key_value"
        recipes |= _fused_qkv(fused, (query, key, value), config.num_attention_heads)
        for our_name, their_name in modules.items():
            recipes |= affine(f"{ours}.{our_name}", f"{theirs}.{their_name}")
    return recipes


def _fused_qkv(ours: str, theirs: tuple[str, str, str], num_heads: int) -> dict[str, Recipe]:
    """Recipes for the released model's fused projection from separate query, key and value projections.

    Its rows are ordered head by head, then query/key/value, then dimension.
    """

    def interleave(*qkv: Tensor) -> Tensor:
        return torch.stack([t.unflatten(0, (num_heads, -1)) for t in qkv], dim=1).flatten(0, 2)

    return {
        f"{ours}.{kind}": Recipe(tuple(f"{name}.{kind}" for name in theirs), interleave)
        for kind in ("weight", "bias")
    }


def read_vision_folder(
    folder: Path,
    kind: str,
    config: VisionConfig,
    recipes_of: Callable[[str, VisionConfig], dict[str, Recipe]],
    *,
    prefix: str,
    foreign: Sequence[str],
    default: tuple[RGB, RGB],
) -> VisionPart:
    """Return the encoder in a folder of the Hugging Face layout.

    Args:
        kind: what the model is called in messages.
        recipes_of: makes the recipes of a configuration, from the prefix of their names.
        prefix: begins the names of the encoder's tensors, unless the file leaves it out.
        foreign: beginnings of the names that belong to something else, without `prefix`.
        default: the normalisation of the pixels if no `preprocessor_config.json` states it.

    Raises:
        CheckpointError: missing or unknown tensors.
    """
    files = TensorFolder(folder)
    prefix = prefix if any(name.startswith(prefix) for name in files.files) else ""
    recipes = recipes_of(prefix, config)
    where = f"{folder} ({kind})"
    return VisionPart(
        origin=where,
        config=config,
        recipes=recipes,
        read_source=files.read,
        normalisation=_normalisation(folder, default),
        unused=account(files.files, recipes, [*foreign, *(prefix + name for name in foreign)], where),
    )


def _normalisation(folder: Path, default: tuple[RGB, RGB]) -> tuple[RGB, RGB]:
    """Return mean and standard deviation from `preprocessor_config.json`, or the default."""
    file = folder / CONFIG_NAME
    try:
        return normalisation(read_json(file, CheckpointError), default) if file.exists() else default
    except ImageError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _make(recipe: Recipe, read_source: Callable[[str], Tensor]) -> Tensor:
    return recipe.make(*(read_source(name) for name in recipe.sources))

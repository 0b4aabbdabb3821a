"""Low-rank adapters (LoRA): small trainable matrices next to large frozen ones (arXiv:2106.09685).

`peft` inserts them and defines their files. Which layers get one is decided here, by patterns that treat the
branches of MAM as one projection and cannot reach the vision encoder by accident. The rule table then decides
what is trainable. The released script's LoRA also trains the whole decoder (docs/fidelity.md); here the
matrix under an adapter must be frozen. At the end a run saves the adapters alone, then merges them.
"""

import hashlib
import json
import logging
import warnings
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from owl2.checkpoint import CheckpointError, resolve
from owl2.checkpoint.errors import check_fit, first_few
from owl2.checkpoint.tensors import dtype_of
from owl2.checkpoint.write import new_folder
from owl2.files import read_json, write_file
from owl2.model import Owl2Model
from owl2.train.adapters.qlora import (
    FourBitLinear,
    base_fingerprint,
    coded_layers,
    import_bitsandbytes,
    quantize_bases,
)
from owl2.train.config import LoraConfig, TrainConfig, TrainConfigError
from owl2.train.fingerprints import fingerprints_of
from owl2.train.parallel import gather_whole, set_parameter
from owl2.train.ranks import ALONE, Ranks
from owl2.train.rules import VISION_PREFIX, Assignment, RuleError

WEIGHTS, OTHERS = "adapter_model.safetensors", "other_weights.safetensors"
"""The adapters with `peft`'s names, and all other trained parameters with the checkpoint's names."""

CONTENTS = "owl2_adapter.json"
"""Which files an adapter folder must have, and the fingerprints of the frozen weights that it belongs to."""

PREFIX = "base_model.model."
"""`peft` puts this before every name in a file."""

BASE = ".base_layer"
"""Infix that `peft` inserts into the names of parameters whose layer has an adapter."""


def import_peft() -> Any:
    """Return the package; TrainConfigError if it is missing."""
    # It imports bitsandbytes, which advises about packages for kernels that are not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise TrainConfigError(f"lora needs the package peft ({error}): pip install 'owl2[lora]'") from error
    return peft


def check_installed(config: LoraConfig) -> None:
    """Raise TrainConfigError if a package that adapters need is missing."""
    import_peft()
    if config.base_dtype == "nf4":
        import_bitsandbytes()


# -- where adapters go -----------------------------------------------------------------------------------


def target_layers(model: Owl2Model, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that the patterns match, in the order of the model.

    Raises:
        TrainConfigError: a pattern matches no layer, reaches the vision encoder without naming it, or
            reaches the output head.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: set[str] = set()
    for pattern in targets:
        matches = {name for name in layers if any(fnmatchcase(n, pattern) for n in (name, _projection(name)))}
        if not matches:
            near = get_close_matches(pattern, list(dict.fromkeys(map(_projection, layers))), n=3, cutoff=0)
            raise TrainConfigError(
                f"lora.targets: {pattern!r} matches none of {len(layers)} linear layers; nearest names: "
                f"{', '.join(near)}"
            )
        vision = [name for name in matches if name.startswith(VISION_PREFIX)]
        if vision and not pattern.startswith(VISION_PREFIX):
            raise TrainConfigError(
                f"lora.targets: {pattern!r} reaches {len(vision)} layers of the vision encoder, as "
                f"{min(vision)}; begin the pattern with {VISION_PREFIX!r} if that is intended, else with "
                f"'model.layers.'"
            )
        if "lm_head" in matches:
            raise TrainConfigError(
                f"lora.targets: {pattern!r} reaches lm_head, whose matrix the loss uses without its layer: "
                f"an adapter there would never be trained; train lm_head by a rule instead"
            )
        found |= matches
    return [name for name in layers if name in found]


def _projection(name: str) -> str:
    """The name of a layer, without the branch of MAM."""
    return name.partition(".multiway.")[0]


def add_adapters(model: Owl2Model, config: LoraConfig) -> None:
    """Insert an adapter at every target layer; on the device `meta` without values.

    If the model has values, the matrices under its adapters are then kept as `base_dtype` says.

    Raises:
        TrainConfigError: a package is missing, or a pattern does not fit the model.
    """
    peft, names = import_peft(), target_layers(model, config.targets)
    is_meta = model.device.type == "meta"
    peft.inject_adapter_in_model(_peft_config(config, names), model, low_cpu_mem_usage=is_meta)
    if not is_meta:
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                set_parameter(parameter, initial_adapter(name, parameter.shape, config.seed))
        if config.base_dtype == "nf4":
            quantize_bases(model)


def _peft_config(config: LoraConfig, names: Sequence[str], base: Path | None = None) -> Any:
    return import_peft().LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(names),
        base_model_name_or_path=None if base is None else str(base),
        inference_mode=base is not None,
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def checkpoint_name(name: str) -> str:
    """The name of a parameter in the checkpoint, without adapters."""
    return name.replace(BASE, "")


def initial_adapter(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial value of an adapter's matrix: A uniform, B zero, so that it changes nothing at first.

    The seed depends on the name, so any number of ranks makes the same values, layer by layer.
    """
    if ".lora_B." in name:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    bound = shape[1] ** -0.5  # Kaiming with a slope of sqrt(5), as in peft and nn.Linear
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


# -- what is trainable -----------------------------------------------------------------------------------


def check_rules(assignments: Sequence[Assignment]) -> None:
    """Raise RuleError if an adapter is frozen, or the matrix under it is not."""
    for assignment in assignments:
        name, frozen, rule = assignment.name, assignment.rule.frozen, assignment.rule.match
        if BASE in name and not frozen:
            raise RuleError(
                f"rule {rule!r} trains {name}, which has an adapter to be trained instead; begin the table "
                f'with {{match: "*.lora_*"}} and freeze the rest of these layers'
            )
        if is_adapter(name) and frozen:
            raise RuleError(
                f"rule {rule!r} freezes {name}, which would then have no effect; put "
                f'{{match: "*.lora_*"}} before it, or leave its layer out of lora.targets'
            )


def summary(model: nn.Module) -> str:
    """One sentence on how much of a model is trainable."""
    counts = [(p.numel(), p.requires_grad, is_adapter(name)) for name, p in model.named_parameters()]
    coded = sum(layer.num_weights for layer in coded_layers(model))
    total = coded + sum(n for n, *_ in counts)
    trainable = sum(n for n, is_trainable, _ in counts if is_trainable)
    adapters = sum(n for n, _, adapter in counts if adapter)
    layers = sum(".lora_A." in name for name, _ in model.named_parameters())
    return (
        f"LoRA: {trainable:,} of {total:,} parameters are trainable ({trainable / total:.2%}), {adapters:,} "
        f"of them in the adapters of {layers} layers"
        + f"; {coded:,} frozen ones have four bits"
        * bool(coded)
    )


# -- the adapter folder ----------------------------------------------------------------------------------


def save_adapter(
    model: Owl2Model,
    folder: Path,
    config: LoraConfig,
    *,
    base: Path,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
) -> None:
    """Write the trained parameters as a folder that `peft` reads, atomically; called by every rank.

    Args:
        model: has adapters; it may be sharded.
        folder: the target; an adapter folder of that name is replaced.
        config: what the adapters were made from.
        base: the checkpoint that they belong to.
        dtype: the type in the files.
        ranks: the ranks that hold the model.

    Raises:
        CheckpointError: the disk has too little room, or the target holds other things.
    """
    tensors: dict[str, dict[str, Tensor]] = {WEIGHTS: {}, OTHERS: {}}
    frozen = {}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            tensors[WEIGHTS][_file_name(name)] = _in_memory(parameter, dtype)
        elif parameter.requires_grad:
            tensors[OTHERS][name] = _in_memory(parameter, dtype)
        else:
            frozen[checkpoint_name(name)] = parameter
    base_marks = fingerprints_of(frozen, ranks, base_fingerprint)
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            base_marks[checkpoint_name(f"{name}.weight")] = module.base_fingerprint
    layers = [name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name]

    def write() -> None:
        size = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
        with new_folder(folder, need_bytes=size) as temporary:
            _peft_config(config, layers, base).save_pretrained(str(temporary))
            for name, part in tensors.items():
                if part:
                    save_file(part, temporary / name, metadata={"format": "pt"})
            contents = {
                "files": {name: _sha256(temporary / name) for name, part in tensors.items() if part},
                "base": {name: f"{mark:016x}" for name, mark in sorted(base_marks.items())},
            }
            write_file(temporary / CONTENTS, json.dumps(contents, indent=1).encode())

    ranks.on_first(write)


def _file_name(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")


def _in_memory(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return gather_whole(parameter.detach()).to("cpu", dtype).contiguous()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_adapter(model: Owl2Model, folder: Path | str) -> None:
    """Insert a run's adapters, and set all else that it trained, in the model that it started from.

    Raises:
        CheckpointError: the folder has no adapters, is incomplete, or belongs to another model.
        TrainConfigError: `peft` is missing.
    """
    peft, folder = import_peft(), Path(folder)
    if not (folder / WEIGHTS).exists() or not (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} has no adapters: looked for {WEIGHTS} and adapter_config.json")
    if any(is_adapter(name) for name, _ in model.named_parameters()):
        raise CheckpointError(f"{folder}: the model has adapters already; load its checkpoint again first")
    settings = peft.LoraConfig.from_pretrained(str(folder))
    adapters, others = _read_tensors(folder / WEIGHTS), {}
    if (folder / OTHERS).exists():
        others = _read_tensors(folder / OTHERS)
    layers = {name: module for name, module in model.named_modules() if name in settings.target_modules}
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if name in others}
    for name, layer in layers.items():
        expected[f"{PREFIX}{name}.lora_A.weight"] = (settings.r, layer.in_features)
        expected[f"{PREFIX}{name}.lora_B.weight"] = (layer.out_features, settings.r)
    found = {name: tuple(tensor.shape) for name, tensor in {**adapters, **others}.items()}
    check_fit(expected, found, str(folder))
    _check_contents(model, folder)
    peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            set_parameter(parameter, adapters[_file_name(name)])
        elif name in others:
            set_parameter(parameter, others[name])


def base_of(folder: Path) -> Path:
    """Return the folder of the checkpoint that adapters belong to, from their `adapter_config.json`.

    Raises:
        CheckpointError: no checkpoint is named, or there is none of this name.
    """
    path = folder / "adapter_config.json"
    base = read_json(path, CheckpointError).get("base_model_name_or_path")
    try:
        if not isinstance(base, str):
            raise CheckpointError("none")
        return resolve(base)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} has adapters without their checkpoint: {error}. Set base_model_name_or_path in {path} "
            f"to the checkpoint that the run started from (it is {base!r})"
        ) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy the adapter folder again") from error


def _check_contents(model: Owl2Model, folder: Path) -> None:
    """Raise CheckpointError if files of the adapter are missing or changed, or the model is not its base."""
    if not (folder / CONTENTS).exists():
        warnings.warn(
            f"{folder} has no {CONTENTS} (it was made by an earlier version), so it is not checked that the "
            f"adapter is complete and that this model is its base",
            stacklevel=3,
        )
        return
    try:
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        files, base = dict(contents["files"]), dict(contents["base"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONTENTS} is damaged ({error}); copy the folder again") from None
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder} is not the whole adapter: {', '.join(missing)} is missing, without which the model "
            f"would answer differently; copy the whole folder"
        )
    changed = [name for name, digest in files.items() if _sha256(folder / name) != digest]
    if changed or ((folder / OTHERS).exists() and OTHERS not in files):
        raise CheckpointError(
            f"{folder}: {', '.join(changed or [OTHERS])} is not the file that was saved with this adapter; "
            f"copy the whole folder again, or delete {CONTENTS} to load it without these checks"
        )
    if model.dtype not in (torch.float32, torch.bfloat16):
        warnings.warn(f"{folder}: its base is not checked for a model in {model.dtype}", stacklevel=3)
        return
    parameters = {name: p for name, p in model.named_parameters() if name in base}
    other = [name for name in base if name not in parameters]
    other += [n for n, p in parameters.items() if f"{base_fingerprint(p):016x}" != base[n]]
    if other:
        raise CheckpointError(
            f"{folder} belongs to another checkpoint: {len(other)} of {len(base)} frozen parameters are not "
            f"those that it was trained with ({first_few(other)}). Load it into the checkpoint that the run "
            f"started from, `model` in the run's config.yaml"
        )


# -- the end of a run ------------------------------------------------------------------------------------


def finish(model: Owl2Model, config: TrainConfig, ranks: Ranks) -> None:
    """Save the adapters in `run/adapter` and merge them into the model; called by every rank."""
    assert config.lora is not None
    folder, dtype = config.run / "adapter", dtype_of(config.dtype)
    save_adapter(model, folder, config.lora, base=config.model, dtype=dtype, ranks=ranks)
    merge_adapters(model, dtype, "cpu" if ranks.is_first else "meta")


@torch.no_grad()
def merge_adapters(
    model: Owl2Model, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> None:
    """Add every adapter to its matrix and remove it, so that the model is a plain one again.

    The model may be sharded; each rank then holds one whole matrix at a time. A four-bit matrix is restored
    from its codes, as its adapter was trained with it, and kept on `device` in `dtype` to save memory.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        down, up = (gather_whole(part["default"].weight) for part in (layer.lora_A, layer.lora_B))
        base, is_coded = layer.base_layer, isinstance(layer.base_layer, FourBitLinear)
        linear = base.restored() if is_coded else base
        weight = linear.weight
        # In float64, so that a merged matrix is rounded once.
        change = layer.scaling["default"] * (up.double() @ down.double())
        set_parameter(weight, (gather_whole(weight).double() + change).to(weight.dtype))
        model.set_submodule(name, linear.to(device, dtype) if is_coded else linear)
    del model.peft_config

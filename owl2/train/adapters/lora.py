"""Low-rank adapters: a frozen model learns through small matrices beside its large ones (arXiv:2106.09685).

`peft` puts them in and defines their files. Which layers get one is decided here, by patterns that treat the
ways of MAM as one projection and cannot reach the vision encoder by accident. The rule table then says what
learns. The released script's LoRA trains the whole decoder beside its adapters (docs/fidelity.md); here the
matrices under an adapter must be frozen. A run's end leaves the adapters alone, then merges them.
"""

import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from owl2.checkpoint import CheckpointError
from owl2.checkpoint.errors import check_fit
from owl2.checkpoint.tensors import dtype_of
from owl2.checkpoint.write import new_folder
from owl2.model import Owl2Model
from owl2.train.adapters.qlora import FourBitLinear, coded_layers, import_bitsandbytes, quantize_bases
from owl2.train.config import LoraConfig, TrainConfig, TrainConfigError
from owl2.train.parallel import gather_whole, set_parameter
from owl2.train.ranks import ALONE, Ranks
from owl2.train.rules import VISION_PREFIX, Assignment, RuleError

WEIGHTS, OTHERS = "adapter_model.safetensors", "other_weights.safetensors"
"""The adapters as `peft` names them, and what else learnt, as the checkpoint names it."""

PREFIX = "base_model.model."
"""What `peft` puts before every name in a file."""

BASE = ".base_layer"
"""What a parameter's name gets in between when its layer has an adapter."""


def import_peft() -> Any:
    """Return the package, or raise TrainConfigError if it is missing."""
    try:
        import peft
    except ImportError as error:
        raise TrainConfigError(f"lora needs the package peft ({error}): pip install 'owl2[lora]'") from error
    return peft


def check_installed(config: LoraConfig) -> None:
    """Raise TrainConfigError if a package that the adapters need is missing."""
    import_peft()
    if config.base_dtype == "nf4":
        import_bitsandbytes()


# -- where adapters go -----------------------------------------------------------------------------------


def target_layers(model: Owl2Model, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that the patterns match, in the order of the model.

    Raises:
        TrainConfigError: a pattern that matches none, that reaches the vision encoder without naming it, or
            the output head.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found: set[str] = set()
    for pattern in targets:
        matches = {name for name in layers if any(fnmatchcase(n, pattern) for n in (name, _of_ways(name)))}
        if not matches:
            near = get_close_matches(pattern, list(dict.fromkeys(map(_of_ways, layers))), n=3, cutoff=0)
            raise TrainConfigError(
                f"lora.targets: {pattern!r} matches none of {len(layers)} linear layers; nearest names: "
                f"{', '.join(near)}"
            )
        vision = [name for name in matches if name.startswith(VISION_PREFIX)]
        if vision and not pattern.startswith(VISION_PREFIX):
            raise TrainConfigError(
                f"lora.targets: {pattern!r} reaches {len(vision)} layers of the vision encoder, as "
                f"{min(vision)}; begin a pattern with {VISION_PREFIX!r} if that is meant, else with "
                f"'model.layers.'"
            )
        if "lm_head" in matches:
            raise TrainConfigError(
                f"lora.targets: {pattern!r} reaches lm_head, of which the loss uses the matrix and not the "
                f"layer, so an adapter there would never learn; let it learn by a rule instead"
            )
        found |= matches
    return [name for name in layers if name in found]


def _of_ways(name: str) -> str:
    """A way's name as that of the projection it is a way of."""
    return name.partition(".multiway.")[0]


def add_adapters(model: Owl2Model, config: LoraConfig) -> None:
    """Put an adapter beside every target layer; on the device meta, without values.

    A model with values then keeps the matrices under its adapters as `base_dtype` says.

    Raises:
        TrainConfigError: a package is missing, or patterns do not fit the model.
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
    """The name of a parameter in a checkpoint, where no layer has an adapter."""
    return name.replace(BASE, "")


def initial_adapter(name: str, shape: torch.Size, seed: int) -> Tensor:
    """What an adapter starts from: zeros behind a uniform draw, so that it changes nothing at first.

    The draw depends on the name, so any number of ranks makes the same one, layer by layer.
    """
    if ".lora_B." in name:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    bound = shape[1] ** -0.5  # Kaiming with a slope of sqrt(5), as peft and nn.Linear draw
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


# -- what learns -----------------------------------------------------------------------------------------


def check_rules(assignments: Sequence[Assignment]) -> None:
    """Raise RuleError where an adapter is frozen, or the matrix beside it is not."""
    for assignment in assignments:
        name, frozen, rule = assignment.name, assignment.rule.frozen, assignment.rule.match
        if BASE in name and not frozen:
            raise RuleError(
                f"rule {rule!r} lets {name} learn, which has an adapter to learn in its place; begin the "
                f'table with {{match: "*.lora_*"}} and freeze the rest of these layers'
            )
        if is_adapter(name) and frozen:
            raise RuleError(
                f"rule {rule!r} freezes {name}, which would stay without effect; put "
                f'{{match: "*.lora_*"}} before it, or leave its layer out of lora.targets'
            )


def summary(model: nn.Module) -> str:
    """One sentence on how much of a model learns."""
    counts = [(p.numel(), p.requires_grad, is_adapter(name)) for name, p in model.named_parameters()]
    coded = sum(layer.num_weights for layer in coded_layers(model))
    total, learns = coded + sum(n for n, *_ in counts), sum(n for n, trained, _ in counts if trained)
    adapters = sum(n for n, _, adapter in counts if adapter)
    layers = sum(".lora_A." in name for name, _ in model.named_parameters())
    return (
        f"LoRA: {learns:,} of {total:,} parameters learn ({learns / total:.2%}), {adapters:,} of them in the "
        f"adapters of {layers} layers" + f"; {coded:,} frozen ones have four bits" * bool(coded)
    )


# -- adapters alone --------------------------------------------------------------------------------------


def save_adapter(
    model: Owl2Model,
    folder: Path,
    config: LoraConfig,
    *,
    base: Path,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
) -> None:
    """Write what learnt as a folder that `peft` reads, atomically; called by every rank.

    Args:
        model: has adapters; it may be sharded.
        folder: the target; adapters of that name are replaced.
        config: what the adapters were made from.
        base: the checkpoint that they belong to.
        dtype: the type in the files.
        ranks: who holds the model.

    Raises:
        CheckpointError: the disk has too little room, or the target holds other things.
    """
    adapters: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            adapters[_file_name(name)] = _in_memory(parameter, dtype)
        elif parameter.requires_grad:
            others[name] = _in_memory(parameter, dtype)
    layers = [name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name]

    def write() -> None:
        size = sum(tensor.nbytes for tensor in (*adapters.values(), *others.values()))
        with new_folder(folder, need_bytes=size) as temporary:
            _peft_config(config, layers, base).save_pretrained(str(temporary))
            save_file(adapters, temporary / WEIGHTS, metadata={"format": "pt"})
            if others:
                save_file(others, temporary / OTHERS, metadata={"format": "pt"})

    ranks.on_first(write)


def _file_name(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")


def _in_memory(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return gather_whole(parameter.detach()).to("cpu", dtype).contiguous()


def load_adapter(model: Owl2Model, folder: Path | str) -> None:
    """Put a run's adapters, and what else it learnt, into the model that it started from.

    Raises:
        CheckpointError: not such a folder, or one of another model.
        TrainConfigError: `peft` is missing.
    """
    peft, folder = import_peft(), Path(folder)
    if not (folder / WEIGHTS).exists() or not (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} has no adapters: looked for {WEIGHTS} and adapter_config.json")
    settings = peft.LoraConfig.from_pretrained(str(folder))
    adapters, others = load_file(folder / WEIGHTS), {}
    if (folder / OTHERS).exists():
        others = load_file(folder / OTHERS)
    layers = {name: module for name, module in model.named_modules() if name in settings.target_modules}
    expected = {name: tuple(p.shape) for name, p in model.named_parameters() if name in others}
    for name, layer in layers.items():
        expected[f"{PREFIX}{name}.lora_A.weight"] = (settings.r, layer.in_features)
        expected[f"{PREFIX}{name}.lora_B.weight"] = (layer.out_features, settings.r)
    found = {name: tuple(tensor.shape) for name, tensor in {**adapters, **others}.items()}
    check_fit(expected, found, str(folder))
    peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            set_parameter(parameter, adapters[_file_name(name)])
        elif name in others:
            set_parameter(parameter, others[name])


# -- the end of a run ------------------------------------------------------------------------------------


def finish(model: Owl2Model, config: TrainConfig, ranks: Ranks) -> None:
    """Leave the adapters in `run/adapter` and merge them into the model; called by every rank."""
    assert config.lora is not None
    folder, dtype = config.run / "adapter", dtype_of(config.dtype)
    save_adapter(model, folder, config.lora, base=config.model, dtype=dtype, ranks=ranks)
    merge_adapters(model, dtype, "cpu" if ranks.is_first else "meta")


@torch.no_grad()
def merge_adapters(
    model: Owl2Model, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> None:
    """Add every adapter to its matrix and take it out, so that the model is a plain one again.

    The model may be sharded; each rank then holds one matrix whole at a time. A matrix of four bits is
    the one that its adapter was trained beside; there may be no room for it but on `device`, in `dtype`.
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

"""Weight files, memory-mapped: every tensor has a shape and a type before a byte of it is read.

`safetensors` and the zip form of PyTorch's pickles are mapped alike: a file becomes a dictionary of tensors
that are views of the file. Reading a tensor in its own type costs no memory of ours; converting one touches
pages that the system counts as ours while the file stays mapped, so the file is mapped again after every
`REMAP_BYTES` of copies. A pickle is only ever read with `weights_only`.

Weight files are an index with its shards, shards named `-00001-of-00033`, or a single file; safetensors are
preferred.
"""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from owl2.checkpoint.errors import CheckpointError, Shape, first_few, gigabytes
from owl2.files import read_json, seems_to_be

REMAP_BYTES = 32 * 2**20

STEMS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""What weight files are called, in order of preference."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TensorFolder:
    """All tensors of a folder's weight files, in the order of the files."""

    def __init__(self, folder: Path):
        """Open the weights in `folder`.

        Raises:
            CheckpointError: no weights, a missing or damaged shard, or an index that names another one.
        """
        self.folder = folder
        files, index = find_weight_files(folder)
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for file in files:
            for name, tensor in map_file(file).items():
                if name in self.files:
                    raise CheckpointError(
                        f"{name} is in both {self.files[name].name} and {file.name} of {folder}"
                    )
                self.files[name] = file
                self.shapes[name] = tuple(tensor.shape)
                self.dtypes[name] = tensor.dtype
        lost = [name for name, file in index.items() if self.files.get(name) != folder / file]
        if lost:
            raise CheckpointError(
                f"{folder}: {len(lost)} tensors are not in the shard that the index names, such as "
                f"{lost[0]} in {index[lost[0]]}; download the folder again"
            )
        self._mapped: tuple[Path, dict[str, Tensor]] | None = None
        self._copied_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor as it is stored."""
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize

    def read(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return a tensor: a view of its file if neither type nor device changes, else a copy."""
        file = self.files[name]
        if self._mapped is None or self._mapped[0] != file:
            self._mapped = (file, map_file(file))
        view = self._mapped[1][name]
        tensor = view.to(device=device, dtype=dtype or view.dtype)
        if tensor is not view:
            self._copied_bytes += self.num_bytes(name)
            if self._copied_bytes > REMAP_BYTES:
                self._mapped, self._copied_bytes = None, 0
        return tensor


def map_file(file: Path) -> dict[str, Tensor]:
    """Memory-map a weight file as a dictionary of tensors.

    Raises:
        CheckpointError: missing, damaged, not a dictionary of tensors, or a pickle that wants to run code.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(512)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if found := seems_to_be(start):
        raise CheckpointError(f"{file} {found}")
    return _map_safetensors(file) if file.suffix == ".safetensors" else _map_pickle(file)


def _map_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # SafetensorError; of a header that is nonsense, also those of PyTorch
        raise CheckpointError(
            f"{file} ({gigabytes(file.stat().st_size)}) is damaged or cut short: {error}; download it again"
        ) from error


def _map_pickle(file: Path) -> dict[str, Tensor]:
    try:
        # Only the zip form (PyTorch >= 1.6) can be mapped; the older one is read whole.
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        wanted = re.findall(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{file} was refused: it is no plain dictionary of tensors"
            + (f", it asks to run {wanted[0]}" if wanted else "")
            + ". Nothing of it was executed; get the weights as safetensors from a source you trust"
        ) from error
    except Exception as error:  # a damaged pickle can fail with any of them
        raise CheckpointError(
            f"{file} ({gigabytes(file.stat().st_size)}) is damaged or cut short: "
            f"{str(error).splitlines()[0] if str(error) else 'no content'}; download it again"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file} holds a {type(content).__name__} that is not a dictionary of tensors")
    return dict(content)


def find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files of a folder, in order, and the index (tensor to file name) if there is one.

    Raises:
        CheckpointError: none, or a shard is missing; the message says which and what was looked for.
    """
    for stem, suffix in STEMS:
        index_file = folder / f"{stem}{suffix}.index.json"
        if index_file.exists():
            index = read_json(index_file, CheckpointError).get("weight_map")
            if (
                not isinstance(index, dict)
                or not index
                or not all(isinstance(v, str) for v in index.values())
            ):
                raise CheckpointError(f"{index_file} has no weight_map of tensor names to shards")
            return _complete(folder, sorted(set(index.values()))), index
        if (folder / f"{stem}{suffix}").exists():
            return [folder / f"{stem}{suffix}"], {}
        shards = sorted(p.name for p in folder.glob(f"{stem}-*-of-*{suffix}"))
        if shards:
            return _complete(folder, _all_of(shards[0])), {}
    looked_for = ", ".join(f"{stem}{suffix} (or its shards)" for stem, suffix in STEMS)
    present = first_few(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise CheckpointError(f"{folder} has no weights: looked for {looked_for}; it holds {present}")


def _all_of(shard: str) -> list[str]:
    """The names of every shard, from the name of one: `model-00002-of-00003.safetensors`."""
    match = re.fullmatch(r"(.+-)(\d+)-of-(\d+)(\.\w+)", shard)
    if match is None:
        raise CheckpointError(f"{shard} is not named like a shard, such as model-00001-of-00003.safetensors")
    head, digits, total, suffix = match.groups()
    return [f"{head}{i + 1:0{len(digits)}d}-of-{total}{suffix}" for i in range(int(total))]


def _complete(folder: Path, names: list[str]) -> list[Path]:
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"the index of {folder} names files outside of it: {first_few(outside)}")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {first_few(missing)}; download them again"
        )
    return [folder / name for name in names]


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """Return a floating-point type by name.

    Raises:
        CheckpointError: not one of float32, bfloat16, float16.
    """
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in DTYPES.values():
        raise CheckpointError(f"dtype {name} is not one of {', '.join(DTYPES)}")
    return dtype

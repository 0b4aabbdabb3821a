"""The public workflow runs what the Makefile has, and the lines of the core can be counted."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_public_workflow_runs_targets_of_the_makefile_on_every_supported_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {command.split()[:2][-1] for command in commands} == {"lint", "test", "docs"}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert all(command.split()[0] == "make" and command.split()[1] in targets for command in commands)
    assert jobs["test"]["strategy"]["matrix"]["python-version"] == ["3.11", "3.12", "3.13"]


def test_ci_ends_with_the_summary_of_a_test_run() -> None:
    commands = (ROOT / ".ci/run").read_text().splitlines()
    assert commands[-3:] == ["make lint", "make test", "make test-slow"]


def test_the_sizes_of_the_core_and_of_its_rings_add_up() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.size"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [(int(line[:7].replace(",", "")), line[9:]) for line in run.stdout.splitlines() if line]
    found = {name: count for count, name in rows}
    core, total = found.pop("the core"), found.pop("owl2, all of it")
    alone = sum(len(file.read_text().splitlines()) for file in (ROOT / "owl2").glob("*.py")) - len(
        (ROOT / "owl2/api.py").read_text().splitlines()
    )
    assert sum(found.values()) + alone == total
    assert 5_000 < core < total


def test_the_reading_guide_names_files_with_about_as_many_lines() -> None:
    guide = (ROOT / "README.md").read_text().split("## Read the code in an hour")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\[.*?) \| ([\d,]+) \|", guide, re.MULTILINE)
    assert len(rows) >= 6
    for files, said in rows:
        paths = [ROOT / name for name in re.findall(r"\]\((owl2/[^)]+)\)", files)]
        found = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
        lines = sum(len(file.read_text().splitlines()) for file in found)
        assert abs(lines - int(said.replace(",", ""))) <= 0.15 * lines, (
            f"{files}: {lines} lines, README says {said}"
        )

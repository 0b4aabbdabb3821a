"""Lines of code, the core counted separately: what a reader has to read, and in which order.

python -m bench.size        (or `make size`; needs Python and nothing else)
"""

from pathlib import Path

ROOT = Path(__file__).parents[1] / "owl2"

CORE = {
    "model": ["model"],
    "processor": ["processor"],
    "checkpoint": ["checkpoint"],
    "generate": ["generate", "api.py"],
    "data: samples, order, packing, loading": ["data/*.py", "data/readers"],
    "train: configuration, rules, ranks, loop, state": [
        *(f"train/{name}.py" for name in ("config", "rules", "optim", "objectives", "ranks", "parallel")),
        *(f"train/{name}.py" for name in ("prepare", "loop", "metrics")),
        "train/state",
    ],
}
"""The parts of the core, in the order of reading."""


def lines_of(name: str) -> int:
    """Lines of the files that a pattern names, or of the Python files below a folder."""
    found = list(ROOT.glob(name))
    if not found:
        raise SystemExit(f"bench.size: owl2/{name} is gone; correct CORE in bench/size.py")
    files = [file for path in found for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def main() -> None:
    """Print lines of each part of the core, of the rings around it, and of all."""
    core = {title: sum(map(lines_of, names)) for title, names in CORE.items()}
    total = lines_of("**/*.py")
    for title, count in core.items():
        print(f"{count:7,}  {title}")
    print(f"{sum(core.values()):7,}  the core\n")
    packages = sorted(folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists())
    counted = [name for names in CORE.values() for name in names]
    for package in packages:
        inside = sum(lines_of(name) for name in counted if name.split("/")[0] == package)
        if rest := lines_of(package) - inside:
            print(f"{rest:7,}  {package}" + (" (the rest)" if inside else ""))
    print(f"{total:7,}  owl2, all of it")


if __name__ == "__main__":
    main()

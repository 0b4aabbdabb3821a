"""Files that appear whole or not at all, as every package writes its own; and the folder to keep some in."""

import os
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write under a temporary name beside the file, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """`$OWL2_CACHE`, by default `~/.cache/owl2`: what can be made or fetched again."""
    return Path(os.environ.get("OWL2_CACHE", Path.home() / ".cache" / "owl2"))

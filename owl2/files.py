"""Files that appear whole or not at all; what every package that writes one calls."""

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

"""Files that appear whole or not at all, as every package writes its own; and the folder to keep some in."""

import os
from contextlib import suppress
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write under a temporary name beside the file, then rename.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    if path.exists() and not path.is_file():  # /dev/null or a pipe is written to, never replaced
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def cache_folder() -> Path:
    """`$OWL2_CACHE`, by default `~/.cache/owl2`: what can be made or fetched again."""
    return Path(os.environ.get("OWL2_CACHE", Path.home() / ".cache" / "owl2"))

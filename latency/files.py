"""Files that are written wholly or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write beside and rename into place: a reader sees the old file or the new one. Raises OSError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_bytes(content)
    os.replace(scratch, path)

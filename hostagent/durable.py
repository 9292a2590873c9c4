"""What must be on the disk before anything stands on it."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """See a file, or the names in a folder, on disk; OSError when it is a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

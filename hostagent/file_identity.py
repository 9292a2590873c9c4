"""Whether a file is still the one that was looked at before."""

from __future__ import annotations

from pathlib import Path

Identity = tuple[int, int, int, int, int]


def identity(path: Path) -> Identity:
    """Another one for a file that was replaced, or written to: nobody sets back when its inode changed (inode(7)).

    Raises OSError when there is none.
    """
    seen = path.stat()
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns

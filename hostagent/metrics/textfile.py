"""A file for node_exporter's textfile collector: replaced whole, readable for everybody, never through a link.

The collector reads what ends in ".prom", https://github.com/prometheus/node_exporter#textfile-collector, and its folder
may belong to somebody else than root.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hostagent.errors import Failed, UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}\.prom")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def require_textfile(path: Path) -> None:
    """Raises UsageError for a name that no collector reads, or a folder that is not there or is a link."""
    doing = f"writing {path}"
    if _NAME.fullmatch(path.name) is None:
        raise UsageError(doing, expected="a file named like hostagent.prom", found=repr(path.name))
    with _folder(path):
        pass


def write_textfile(path: Path, text: str) -> None:
    """Put it there in one step, mode 0644; UsageError as above, Failed when it cannot be written."""
    require_textfile(path)
    beside = f".{path.name}.hostagent"  # that no collector reads
    with _folder(path) as folder:
        try:
            _require_plain(path, folder)
            with suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=folder)
            fd = os.open(beside, _NEW, 0o600, dir_fd=folder)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(fd, 0o644)
                os.fsync(fd)
            os.rename(beside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            with suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise Failed(f"writing {path}", found=error.strerror or str(error)) from error


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    try:
        folder = os.open(path.absolute().parent, _FOLDER)
    except OSError as error:
        raise UsageError(
            f"writing {path}",
            expected=f"a folder {path.absolute().parent} that is there, and is no link",
            found=error.strerror or str(error),
        ) from error
    try:
        yield folder
    finally:
        os.close(folder)


def _require_plain(path: Path, folder: int) -> None:
    """What is there may be an earlier file and nothing else: whoever put a link there means something by it."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise UsageError(f"writing {path}", expected="a regular file in its place, or none", found="something else")

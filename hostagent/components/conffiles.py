"""Configuration files of packages, kept for the way back.

dpkg removes those of a package that was unpacked and never configured, whoever wrote what is in them (dpkg 1.21): a way
back from the middle of an upgrade would lose what the host's owner has changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostagent.durable import fsync
from hostagent.errors import Failed

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Conffile:
    """One, as it was."""

    path: str
    copy: str  # where its content is kept; "" when its owner had removed it
    mode: int = 0
    uid: int = 0
    gid: int = 0


def keep(paths: Iterable[str], folder: Path) -> tuple[Conffile, ...]:
    """Copies of these in a folder of ours. What is no plain file is left out: a link leads to what is its owner's."""
    kept = []
    for number, path in enumerate(paths):
        copy = folder / str(number)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, _READ), "rb") as file:
                was = os.fstat(file.fileno())
                if not stat.S_ISREG(was.st_mode):
                    continue
                _write(copy, file.read(), 0o600)
        except FileNotFoundError:
            kept.append(Conffile(path, ""))
        except OSError as error:
            if Path(path).is_symlink():
                continue
            raise Failed(f"keeping {path}", found=error.strerror or str(error)) from error
        else:
            kept.append(Conffile(path, str(copy), stat.S_IMODE(was.st_mode), was.st_uid, was.st_gid))
    return tuple(kept)


def restore(conffiles: Iterable[Conffile]) -> None:
    """Have all of them as they were kept. Any number of times."""
    for one in conffiles:
        try:
            _restore(one)
        except OSError as error:
            raise Failed(f"putting {one.path} back", found=error.strerror or str(error)) from error


def _restore(one: Conffile) -> None:
    path = Path(one.path)
    if path.is_symlink():
        return  # its owner's, since
    if not one.copy:
        path.unlink(missing_ok=True)
        return
    data = Path(one.copy).read_bytes()
    if _is_as(path, data, one):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.hostagent")
    beside.unlink(missing_ok=True)
    _write(beside, data, one.mode, owner=(one.uid, one.gid))
    beside.rename(path)
    fsync(path.parent)


def _is_as(path: Path, data: bytes, one: Conffile) -> bool:
    with suppress(FileNotFoundError), os.fdopen(os.open(path, _READ), "rb") as file:
        now = os.fstat(file.fileno())
        same = (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (one.mode, one.uid, one.gid)
        return same and stat.S_ISREG(now.st_mode) and file.read() == data
    return False


def _write(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    with os.fdopen(os.open(path, _MAKE, 0o600), "wb") as file:
        file.write(data)
        if owner is not None:
            os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())

"""Files that an update writes: durable, private, never through a link, and replaced whole."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostagent.durable import fsync
from hostagent.errors import Failed, Refused

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SIZE_LIMIT = 16 << 20  # libvirt's records are some ten KiB


class Pinned(Protocol):
    """A RAM file and our hard link to it."""

    @property
    def ram(self) -> str: ...
    @property
    def link(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def inode(self) -> int: ...


class MadeRam(Protocol):
    """A RAM file of our making."""

    @property
    def path(self) -> str: ...
    @property
    def link(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def in_new_folder(self) -> bool: ...


def read_private(path: Path, limit: int = _SIZE_LIMIT) -> bytes:
    """A regular file of at most so many bytes, not through a link."""
    try:
        # not blocking: a pipe in its place would never be opened
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Failed(f"reading {path}", expected="a regular file", found="something else")
            data = file.read(limit + 1)
    except OSError as error:
        raise Failed(f"reading {path}", found=error.strerror or str(error)) from error
    if len(data) > limit:
        raise Failed(f"reading {path}", expected=f"at most {limit} bytes", found="more")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Create or replace a file of ours, mode 0600 below a directory with 0700; on the disk when it returns."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"making {path.parent}", found=error.strerror or str(error)) from error
    replace(path, data)


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of `path` in one step, mode 0600. The temporary name is none that libvirt would load."""
    beside = _beside(path)
    try:
        with suppress(FileNotFoundError):
            beside.unlink()
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(beside, path)  # noqa: PTH104
        fsync(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise Failed(f"writing {path}", found=error.strerror or str(error)) from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.hostagent")


def discard(*paths: str) -> None:
    """Take files of ours away, and what a crash left of writing them. Any number of times."""
    for name in paths:
        try:
            for path in (Path(name), _beside(Path(name))):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Failed(f"removing {name}", found=error.strerror or str(error)) from error


# -- pid files: each QEMU holds its own open, so they are renamed, not rewritten -----------------------------


def swap_in(name: str, *, new: str, old: str) -> None:
    """Give `name` to the new file; the old one keeps a link `old`. Any number of times."""
    try:
        if not Path(new).exists():
            return
        if not Path(old).exists() and Path(name).exists():
            os.link(name, old, follow_symlinks=False)
        os.rename(new, name)  # noqa: PTH104
    except OSError as error:
        raise Failed(f"replacing {name}", found=error.strerror or str(error)) from error


def swap_back(name: str, *, new: str, old: str) -> None:
    """Give `name` back to the old file."""
    try:
        if Path(old).exists():
            os.rename(old, name)  # noqa: PTH104
        for path in (old, new):  # two links of one file: renaming one to the other does nothing (rename(2))
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"restoring {name}", found=error.strerror or str(error)) from error


# -- pins ----------------------------------------------------------------------------------------------------


def pin_folder(ram: Path) -> Path:
    """Where links to a RAM file go: a folder of ours on the same file system.

    libvirt puts RAM at <memory_backing_dir>/libvirt/qemu/<id>-<name>/<backend>.
    """
    if len(ram.parents) < 5 or ram.parents[1].name != "qemu" or ram.parents[2].name != "libvirt":
        raise Refused(
            f"pinning {ram}",
            expected="<memory_backing_dir>/libvirt/qemu/<id>-<name>/<backend>",
            found=str(ram),
        )
    return ram.parents[3] / "hostagent"


def make_ram(made: MadeRam) -> tuple[int, int]:
    """An empty RAM file where libvirt would have put it, for its QEMU's user; device and inode.

    It is made under our link's name first: that alone says later which file is ours. QEMU's user may rename what is in
    the folder above the RAM: nothing is followed, and what is changed is held open.
    """
    ram, link, doing = Path(made.path), Path(made.link), f"making the RAM file {made.path}"
    with ExitStack() as opened:

        def hold(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        try:
            links = hold(_open_links(link.parent, doing))
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = hold(os.open(link.name, flags, 0o600, dir_fd=links))
            os.ftruncate(file, made.size)
            os.fchown(file, made.uid, made.gid)
            above = hold(os.open(ram.parents[1], _FOLDER))
            if made.in_new_folder:
                os.mkdir(ram.parent.name, 0o700, dir_fd=above)
            folder = hold(os.open(ram.parent.name, _FOLDER, dir_fd=above))
            if made.in_new_folder:
                os.fchown(folder, made.uid, made.gid)
            os.link(link.name, ram.name, src_dir_fd=links, dst_dir_fd=folder, follow_symlinks=False)
            found = os.fstat(file)
        except FileExistsError as error:
            raise Failed(doing, expected="nothing of that name", found="something") from error
        except OSError as error:
            raise Failed(doing, found=error.strerror or str(error)) from error
    return found.st_dev, found.st_ino


def remove_ram(made: MadeRam) -> None:
    """Give its memory back, and its folder if that is ours. Any number of times.

    Only the file that our link names: libvirt counts its guests anew when its daemon starts without any, so that
    another life of the guest may have its RAM under the same name by now.
    """
    ram, link = Path(made.path), Path(made.link)
    try:
        ours = link.lstat()
        with suppress(FileNotFoundError):
            _remove_if(ram, ours)
        if made.in_new_folder:
            with suppress(OSError):
                ram.parent.rmdir()
        link.unlink()
    except FileNotFoundError:
        return  # it was never made, or is nobody's to take away any more
    except OSError as error:
        raise Failed(f"removing {made.path}", found=error.strerror or str(error)) from error
    with suppress(OSError):
        link.parent.rmdir()


def _remove_if(path: Path, ours: os.stat_result) -> None:
    folder = os.open(path.parent, _FOLDER)
    try:
        if os.path.samestat(os.stat(path.name, dir_fd=folder, follow_symlinks=False), ours):
            os.unlink(path.name, dir_fd=folder)
    finally:
        os.close(folder)


def _open_links(folder: Path, doing: str) -> int:
    """The folder of our links, made if need be; raises Failed for somebody else's."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    fd = os.open(folder, _FOLDER)
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise Failed(doing, expected=f"{folder} to be a folder of ours", found="somebody else's")
    return fd


def pin(pinned: Pinned) -> None:
    """Make the link, and see that it is the file that was meant.

    The folder above is QEMU's user's, who may rename what is in it: ours is held open while it is used.
    """
    link, doing = Path(pinned.link), f"pinning {pinned.ram}"
    try:
        folder = _open_links(link.parent, doing)
        try:
            with suppress(FileExistsError):
                os.link(pinned.ram, link.name, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)
    except OSError as error:
        raise Failed(doing, found=error.strerror or str(error)) from error
    if not is_pinned(pinned):
        unpin(pinned)
        raise Failed(doing, expected=f"inode {pinned.inode}", found="another file of that name")


def is_pinned(pinned: Pinned) -> bool:
    """Whether our link is there and is the right file."""
    return _is(Path(pinned.link), pinned)


def is_named(pinned: Pinned) -> bool:
    """Whether the RAM file still has the name under which libvirt expects it."""
    return _is(Path(pinned.ram), pinned)


@dataclass(frozen=True)
class Identity:
    """What tells a file apart from others."""

    device: int
    inode: int
    size: int


def identity(path: str) -> Identity | None:
    """Of a regular file that is there, not through a link."""
    try:
        found = Path(path).lstat()
    except OSError:
        return None
    return Identity(found.st_dev, found.st_ino, found.st_size) if stat.S_ISREG(found.st_mode) else None


def unpin(pinned: Pinned) -> None:
    """Take our link away, and its folder with the last one."""
    link = Path(pinned.link)
    try:
        link.unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"removing {link}", found=error.strerror or str(error)) from error
    with suppress(OSError):
        link.parent.rmdir()


def _is(path: Path, pinned: Pinned) -> bool:
    found = identity(str(path))
    return found is not None and (found.device, found.inode) == (pinned.device, pinned.inode)


def give_name(temporary: str, path: str) -> None:
    """Put a socket in the place of another, which is never followed; done when it has the name."""
    try:
        if Path(temporary).exists():
            os.rename(temporary, path)  # noqa: PTH104
    except OSError as error:
        raise Failed(f"putting a socket at {path}", found=error.strerror or str(error)) from error


def temporary_socket(path: str, token: str, number: int) -> str:
    """Where a socket listens until the old one's has gone: in the same folder, a name not longer than its own."""
    return str(Path(path).with_name(f"{token}-{number}"))

"""The agent's Unix socket: there from its first moment with the mode and the group that it is to have."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Refused

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BACKLOG = 64


@dataclass(frozen=True)
class SocketFile:
    """A socket that listens, and its file."""

    socket: socket.socket
    path: Path
    inode: int

    def close(self) -> None:
        """Listen no more; the file goes away, unless another agent has put its own there."""
        with suppress(OSError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()
        self.socket.close()


def listen(path: Path, gid: int | None) -> SocketFile:
    """A listening socket at `path`, mode 0660 and of that group; without a group 0600.

    It is made in a directory that nobody else can enter, gets its mode there, and is then given its name: so nobody
    can connect in between. What was there is replaced. Raises Refused when another agent answers there, or when its
    directory is one that others can write.
    """
    if _answers(path):
        raise Refused(
            f"listening at {path}",
            expected="no other agent",
            found="one that answers",
            hint="systemctl status hostagent",
        )
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder = os.open(path.parent, _FOLDER)
        try:
            _require_ours(path.parent, os.fstat(folder))
            made = _made(folder, path.name, gid)
            return SocketFile(made, path, os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_ino)
        finally:
            os.close(folder)
    except OSError as error:
        raise Refused(f"listening at {path}", found=error.strerror or str(error)) from error


def _made(folder: int, name: str, gid: int | None) -> socket.socket:
    own = f".{name}.{secrets.token_hex(4)}"
    os.mkdir(own, 0o700, dir_fd=folder)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        inside = os.open(own, _FOLDER, dir_fd=folder)
        try:
            made.bind(f"/proc/self/fd/{inside}/s")  # neither a link in the way, nor a path that is too long
            if gid is not None:
                os.chown("s", -1, gid, dir_fd=inside, follow_symlinks=False)
            os.chmod("s", 0o600 if gid is None else 0o660, dir_fd=inside)
            made.listen(_BACKLOG)
            made.setblocking(False)
            os.rename("s", name, src_dir_fd=inside, dst_dir_fd=folder)
        finally:
            with suppress(FileNotFoundError):
                os.unlink("s", dir_fd=inside)
            os.close(inside)
    except BaseException:
        made.close()
        raise
    finally:
        os.rmdir(own, dir_fd=folder)
    return made


def _require_ours(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Refused(
            f"listening in {path}",
            expected="a directory of root's that nobody else can write",
            found=f"user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}",
            hint=f"chown root: {path}; chmod go-w {path}",
        )


def _answers(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(str(path))
        except TimeoutError:
            return True  # one that is too busy to answer
        except OSError:
            return False
        return True

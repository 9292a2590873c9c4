"""Files, folders and mounts of the host, for setup: no link is followed, a file changes whole or not."""

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hostagent import processes
from hostagent.durable import fsync
from hostagent.errors import Failed, HostagentError, Refused

TMPFS_NAME = "hostagent-ram"
"""What the tmpfs for guests' RAM is called in the list of mounts."""
_SIZE_LIMIT = 1024 * 1024
_MOUNT_SECONDS = 30.0
_PARSER_SECONDS = 60.0


@dataclass(frozen=True)
class Folder:
    """A folder that is there."""

    mode: int
    uid: int
    gid: int
    empty: bool


class HostFiles:
    """The host's files below a root that tests put elsewhere; every path is absolute."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, path: Path) -> bytes | None:
        """A regular file's bytes, None when there is no file; Refused for a link or anything else."""
        with _words(f"reading {path}"):
            try:
                fd = os.open(self._at(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise Refused(f"reading {path}", expected="a regular file", found="something else")
                content = file.read(_SIZE_LIMIT + 1)
            if len(content) > _SIZE_LIMIT:
                raise Refused(f"reading {path}", expected=f"at most {_SIZE_LIMIT} bytes", found="more")
            return content

    def write(self, path: Path, content: bytes | None, *, mode: int) -> None:
        """Replace a file at once, keeping its mode and owner; `mode` is for a new one, None removes it."""
        place = self._at(path)
        with _words(f"writing {path}"):
            if content is None:
                place.unlink(missing_ok=True)
            else:
                old = place.lstat() if os.path.lexists(place) else None
                if old is not None and not stat.S_ISREG(old.st_mode):
                    raise Refused(f"writing {path}", expected="a regular file", found="something else")
                fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=place.parent)
                try:
                    with os.fdopen(fd, "wb") as file:
                        file.write(content)
                        file.flush()
                        if old is not None:
                            os.fchown(fd, old.st_uid, old.st_gid)
                        os.fchmod(fd, stat.S_IMODE(old.st_mode) if old is not None else mode)
                        os.fsync(fd)
                    Path(temporary).replace(place)
                except BaseException:
                    Path(temporary).unlink(missing_ok=True)
                    raise
            fsync(place.parent)

    def is_there(self, path: Path) -> bool:
        """Whether anything is at `path`, be it a link that leads nowhere."""
        return os.path.lexists(self._at(path))

    def folder(self, path: Path) -> Folder | None:
        """What is at `path`, None for nothing; Refused when it is no folder, or a link to one."""
        place = self._at(path)
        with _words(f"looking at {path}"):
            try:
                seen = place.lstat()
            except FileNotFoundError:
                return None
            if not stat.S_ISDIR(seen.st_mode):
                raise Refused(f"looking at {path}", expected="a folder", found="a link or a file")
            return Folder(stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid, not any(place.iterdir()))

    def make_folder(self, path: Path, mode: int, uid: int, gid: int) -> None:
        """Make a folder, or give the one there is its mode and owner, through a descriptor: not a link's."""
        place = self._at(path)
        with _words(f"making {path}"):
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                place.mkdir(mode=0o700)
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
            finally:
                os.close(fd)

    def remove_empty_folder(self, path: Path) -> bool:
        """Remove a folder that is there and empty; whether it was."""
        try:
            self._at(path).rmdir()
        except OSError:
            return False
        return True

    def some_files_below(self, path: Path, at_most: int = 3) -> tuple[Path, ...]:
        """The first few things below a folder that are no folders."""
        found: list[Path] = []
        for folder, _, names in os.walk(self._at(path)):
            found += [path / Path(folder).relative_to(self._at(path)) / name for name in sorted(names)]
            if len(found) >= at_most:
                break
        return tuple(found[:at_most])

    def _at(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    target: Path
    kind: str  # "tmpfs"
    source: str = ""
    options: tuple[str, ...] = ()  # of the file system

    @property
    def outlives_the_kernel(self) -> bool:
        """Whether what is on it is memory that no kernel takes for its own."""
        dax = {"dax", "dax=always"} & set(self.options)
        return self.kind in ("ext4", "xfs") and self.source.startswith("/dev/pmem") and bool(dax)


class SystemMounts:
    """The mounts of this host, changed through mount(8)."""

    def mounts(self) -> tuple[Mount, ...]:
        return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))

    def mount_tmpfs(self, target: Path, options: str) -> None:
        argv = ["mount", "-t", "tmpfs", "-o", options, TMPFS_NAME, str(target)]
        processes.run(argv, within_seconds=_MOUNT_SECONDS)

    def unmount(self, target: Path) -> None:
        processes.run(["umount", "--no-canonicalize", str(target)], within_seconds=_MOUNT_SECONDS)


def load_profile(profile: Path) -> None:
    """Have AppArmor take a profile as it stands in its file now, for what runs under it as well."""
    processes.run(["apparmor_parser", "--replace", str(profile)], within_seconds=_PARSER_SECONDS)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Targets and file systems of proc_pid_mountinfo(5): blanks are octal, fields before " - " may be any."""
    found = re.findall(r"^\S+ \S+ \S+ \S+ (\S+) .*? - (\S+) (\S+) (\S+)", text, re.MULTILINE)
    return tuple(
        Mount(Path(_unescape(target)), kind, _unescape(source), tuple(options.split(",")))
        for target, kind, source, options in found
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


@contextmanager
def _words(doing: str) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        yield
    except HostagentError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):  # O_NOFOLLOW met a link
            raise Refused(doing, expected="no link there", found="one", hint="setup follows no links") from error
        raise Failed(doing, found=error.strerror or str(error)) from error

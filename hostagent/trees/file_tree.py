"""Trees of files: copied without following a link, told apart by content, seen safe on disk."""

import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from hostagent.durable import fsync
from hostagent.errors import Refused

MOST_ENTRIES = 20_000  # a QEMU has some 300; somebody who gave "/" means something else


def copy(doing: str, source: Path, target: Path, *, skip: Collection[Path] = ()) -> None:
    """Copy files, folders and links into `target`; `skip` are places in the tree to leave out.

    Every folder written to was made here and links are never followed, so nothing lands outside. Modes become
    0755 or 0644. Refused: device nodes and the like, links out of the tree, a file that is there already.
    """
    for number, (place, mode) in enumerate(_walk(source, skip)):
        if number >= MOST_ENTRIES:
            raise Refused(doing, expected=f"at most {MOST_ENTRIES} files", found="more")
        made = target / place
        if stat.S_ISDIR(mode):
            with suppress(FileExistsError):
                made.mkdir()
            if made.is_symlink() or not made.is_dir():
                raise Refused(doing, expected=f"{place} to be one thing", found="a folder and something else")
        elif os.path.lexists(made):
            raise Refused(doing, expected=f"{place} once", found="it twice")
        elif stat.S_ISLNK(mode):
            points_to = (source / place).readlink()
            if not _stays_inside(place, points_to):
                raise Refused(doing, expected=f"{place} to stay in the tree", found=f"a link to {points_to}")
            made.symlink_to(points_to)
        elif stat.S_ISREG(mode):
            _copy_file(source / place, made, 0o755 if mode & 0o111 else 0o644)
        else:
            raise Refused(doing, expected=f"{place} to be a file, folder or link", found="something else")


def take(doing: str, path: Path, made: Path) -> None:
    """Copy one file or link, which is not followed; Refused when it is neither."""
    made.parent.mkdir(parents=True, exist_ok=True)
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        made.symlink_to(path.readlink())
    elif stat.S_ISREG(mode):
        _copy_file(path, made, 0o755 if mode & 0o111 else 0o644)
    else:
        raise Refused(doing, expected=f"{path} to be a file or a link", found="something else")


def digest(tree: Path) -> str:
    """SHA-256 over names, kinds and contents: the same for the same tree, whatever its times and owners."""
    whole = hashlib.sha256()
    for place, mode in _walk(tree):
        if stat.S_ISLNK(mode):
            what = f"link {(tree / place).readlink()}"
        elif stat.S_ISREG(mode):
            with (tree / place).open("rb") as file:
                what = f"file {mode & 0o111:o} {hashlib.file_digest(file, 'sha256').hexdigest()}"
        else:
            what = "folder"
        whole.update(os.fsencode(f"{place}\0{what}\0"))
    return whole.hexdigest()


def settle(tree: Path) -> None:
    """Open every folder to everybody's reading, and see all of the tree on disk."""
    for place, mode in [(Path(), tree.stat().st_mode), *_walk(tree)]:
        if stat.S_ISDIR(mode):
            (tree / place).chmod(0o755)  # whatever the umask was
        if not stat.S_ISLNK(mode):
            fsync(tree / place)


def _walk(tree: Path, skip: Collection[Path] = ()) -> Iterator[tuple[Path, int]]:
    """Every place below the tree's top with its mode, a folder before what is in it, in one order for all."""
    pending = [Path()]
    while pending:
        folder = pending.pop()
        with os.scandir(tree / folder) as entries:
            found = sorted((entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries)
        for name, mode in found:
            place = folder / name
            if place in skip:
                continue
            yield place, mode
            if stat.S_ISDIR(mode):
                pending.append(place)


def _stays_inside(place: Path, points_to: Path) -> bool:
    """Whether a link at `place` leads to somewhere in the tree.

    ".." only at the beginning, where it goes up through real folders; behind a link's name it leads anywhere.
    """
    ups = 0
    for part in points_to.parts:
        if part != "..":
            break
        ups += 1
    return not points_to.is_absolute() and ".." not in points_to.parts[ups:] and ups <= len(place.parent.parts)


def _copy_file(source: Path, target: Path, mode: int) -> None:
    with (
        os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reader,
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as writer,
    ):
        shutil.copyfileobj(reader, writer)
        os.fchmod(writer.fileno(), mode)

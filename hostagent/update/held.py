"""What libvirt's hook is told of a guest that is held: where its RAM is, and by what its own restore is known.

A file for each such guest, ``NAME.held``, lines of a word and a value; dist/libvirt-hook-qemu reads it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed, Refused
from hostagent.update.files import discard, read_private, write_private


@dataclass(frozen=True)
class HeldRam:
    """One of its RAM files: the name that libvirt gives it, and our link to it."""

    file: str
    link: str


@dataclass(frozen=True)
class Held:
    """A guest that is held."""

    guest: str
    update: str
    token: str  # stands in the definition that it is restored with, and nowhere else
    folder: str  # <memory_backing_dir>/libvirt/qemu
    short_name: str  # what libvirt names its folder by, after its number
    uid: int
    gid: int
    ram: tuple[HeldRam, ...]

    def written(self) -> str:
        """For the hook; Refused for a value that would be more than one."""
        lines = [
            ("update", self.update),
            ("token", self.token),
            ("folder", self.folder),
            ("name", self.short_name),
            ("owner", f"{self.uid}:{self.gid}"),
            *(("ram", f"{ram.file} {ram.link}") for ram in self.ram),
        ]
        for word, value in lines:
            if "\n" in value or "\0" in value or not value or value != value.strip(" \t"):
                raise Refused(f"{self.guest}: holding it", expected=f"a {word} in one line", found=repr(value))
        if any(" " in ram.file or "\t" in ram.file for ram in self.ram):
            raise Refused(f"{self.guest}: holding it", expected="RAM files without blanks in their names", found="some")
        return "".join(f"{word} {value}\n" for word, value in lines)


def tell_hook(held: Held, folder: Path) -> None:
    """From now on libvirt starts the guest only by our restore."""
    path, words = entry(held.guest, folder), held.written().encode()
    with suppress(Failed):
        if read_private(path) == words:  # a full disk does not keep a guest from coming back
            return
    write_private(path, words)


def release(guest: str, folder: Path) -> None:
    """The guest is like any other again. Any number of times."""
    discard(str(entry(guest, folder)))


def entry(guest: str, folder: Path) -> Path:
    """The guest's file; libvirt allows no slash in a name."""
    if "/" in guest:
        raise Refused("holding a guest", expected="a name without a slash", found=repr(guest))
    return folder / f"{guest}.held"

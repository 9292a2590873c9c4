"""Kernels of the host: the one that runs and those that are installed, told apart down to their builds.

A Debian kernel keeps its release (6.1.0-49-amd64) over security updates; the build says which it is. The image has both
in its header (Linux, Documentation/arch/x86/boot.rst: kernel_version), as uname(2) gives them of the running one.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_VERSION_AT, _HEADER = 0x20E, 0x200  # a number, from the beginning of the header
_TEXT_BYTES = 512


@dataclass(frozen=True)
class Build:
    """A build of a kernel."""

    release: str  # "6.1.0-49-amd64"
    build: str  # "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-1 (2026-05-08)"

    def __str__(self) -> str:
        package = re.search(r"(?:Debian|Ubuntu) (\S+)", self.build)
        return f"{self.release} ({package[1]})" if package else self.release


def newest_image(boot: Path = Path("/boot")) -> tuple[Path, Build] | None:
    """The newest that is installed."""
    images = [(path, build) for path in boot.glob("vmlinuz-*") if (build := read_image(path)) is not None]
    return max(images, key=lambda one: (_order(one[1].release), _order(one[1].build)), default=None)


def is_older(one: Build, other: Build) -> bool:
    """Whether `one` came before `other`, by their releases."""
    return _order(one.release) < _order(other.release)


def running_build() -> Build:
    """This host's."""
    known = os.uname()
    return Build(known.release, known.version)


def read_image(path: Path) -> Build | None:
    """The build of a bzImage; None for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER + 0x10000 + _TEXT_BYTES)
    except OSError:
        return None
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return None
    start = int.from_bytes(head[_VERSION_AT : _VERSION_AT + 2], "little") + _HEADER
    text = head[start : start + _TEXT_BYTES].partition(b"\0")[0].decode("ascii", "replace")
    release, _, rest = text.partition(" ")
    build = rest.partition("#")
    return Build(release, f"#{build[2]}") if release and build[1] else None


def _order(text: str) -> list[tuple[int, int, str]]:
    """Numbers by their size, words by the alphabet."""
    pieces = re.findall(r"(\d+)|(\D+)", text)
    return [(1, int(number), "") if number else (0, 0, word) for number, word in pieces]

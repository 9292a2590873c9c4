"""A guest's QEMU as the kernel shows it: which process it is, what that was started from, which files hold its RAM."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostagent.arguments.command_line import RamBackend
from hostagent.errors import HostagentError
from hostagent.facts import QemuProcess, QemuTree, RamFile
from hostagent.hypervisor import surroundings
from hostagent.hypervisor.surroundings import PROC
from hostagent.libvirt_files.record_shape import pid_file_name
from hostagent.trees.qemu_trees import banner, tree_of


def process_of(libvirt_run: Path, name: str, uuid: str) -> QemuProcess | None:
    """The guest's QEMU: what libvirt's pid file names, if that process says it is this guest."""
    try:
        pid = int((libvirt_run / pid_file_name(name)).read_text())
        started = surroundings.start_ticks(pid)
        argv = words_of((PROC / str(pid) / "cmdline").read_bytes())
        exe = os.readlink(PROC / str(pid) / "exe")  # noqa: PTH115
    except (OSError, ValueError):
        return None
    if uuid not in argv:
        return None
    return QemuProcess(pid, started, exe.removesuffix(" (deleted)"), exe.endswith(" (deleted)"), argv)


def words_of(cmdline: bytes) -> tuple[str, ...]:
    """An argument list as proc(5) has it; a service keeps those of all guests, whose words are the same mostly."""
    return tuple(map(sys.intern, cmdline.decode(errors="surrogateescape").split("\0")[:-1]))


def vhosts(process: QemuProcess) -> int:
    """How many network cards' packets the kernel carries for it: a descriptor of /dev/vhost-net for each queue."""
    try:
        return surroundings.open_files(PROC / str(process.pid) / "fd").get("/dev/vhost-net", 0)
    except OSError:
        return 0  # it has ended meanwhile


def ram_files(backends: Sequence[RamBackend]) -> tuple[RamFile, ...]:
    """The files that hold its RAM, as far as they have a name."""
    found = []
    for backend in backends:
        try:
            seen = os.lstat(backend.path)
        except OSError:
            continue  # a check refuses a guest whose RAM file has no name any more
        found.append(RamFile(backend.id, backend.path, seen.st_dev, seen.st_ino, backend.size))
    return tuple(found)


@dataclass
class Builds:
    """The builds of QEMUs whose files are gone; each process is asked once."""

    _known: dict[QemuProcess, str] = field(default_factory=dict)

    def tree_of(self, process: QemuProcess | None, trees: Sequence[QemuTree]) -> QemuTree | None:
        """The tree that it runs from; for a binary that an upgrade has deleted, a tree of the same build."""
        if process is None:
            return None
        if not process.exe_deleted:
            return tree_of(process.exe, trees)
        build = self._known.get(process)
        if build is None:
            self._known[process] = build = _build_of(process)
        return next((tree for tree in trees if build and tree.package == build), None)

    def keep(self, processes: Collection[QemuProcess | None]) -> None:
        """There are no others."""
        self._known = {process: build for process, build in list(self._known.items()) if process in processes}


def _build_of(process: QemuProcess) -> str:
    """The package of a QEMU whose file is gone: the kernel still has it, and it can be asked. "" when it cannot."""
    exe = PROC / str(process.pid) / "exe"
    try:
        seen = exe.stat()
        if seen.st_uid != 0 or seen.st_mode & 0o022:
            return ""  # a program that others could write is not run as root
        return banner(exe)[1]
    except (OSError, HostagentError):
        return ""

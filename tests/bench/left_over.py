"""Whether a run of the bench left anything on the machine: a snapshot before, one after, and what differs.

    python -m tests.bench.left_over -- COMMAND...

runs a command that enters the bench, and fails if anything was left. Other benches may run at the same time.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import psutil

from tests.bench import cgroups
from tests.bench.launch import NAME_VARIABLE, new_name
from tests.bench.syscalls import die_with_parent

PROCESSES = ("qemu", "libvirt", "virt", "tini")
"""Beginnings of the names of processes that only the bench starts."""
WORDS = ("libvirt", "qemu", "machine", "hostagent")
"""What the names of sockets and control groups have in them that only the bench makes."""
CONFIGURATION = (Path("/etc/libvirt"), Path("/etc/fstab"))
LISTED = (Path("/var/lib/libvirt"), Path("/run/libvirt"), Path("/var/log/libvirt"), Path("/dev/shm"))


@dataclass(frozen=True)
class Snapshot:
    """Everything the bench could have left, as text that says what it is."""

    mounts: frozenset[str]
    namespaces: frozenset[str]
    processes: frozenset[str]
    interfaces: frozenset[str]
    sockets: frozenset[str]
    cgroups: frozenset[str]
    configuration: frozenset[str]
    files: frozenset[str]

    @classmethod
    def take(cls, bench: str) -> Self:
        """What there is outside of all benches, and inside the one named."""
        processes = list(_processes(bench))
        return cls(
            mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            namespaces=frozenset(_namespaces(processes)),
            processes=frozenset(
                f"{process.pid} {process.info['name']}"
                for process in processes
                if process.info["name"].startswith(PROCESSES)
            ),
            interfaces=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
            sockets=frozenset(_sockets()),
            cgroups=frozenset(_cgroups(bench)),
            configuration=frozenset(_digests()),
            files=frozenset(
                f"{where}/{name}"
                for folder in LISTED
                for where, folders, files in os.walk(folder)  # which minds nothing that goes meanwhile
                for name in (*folders, *files)
            ),
        )


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each thing that came or went, such as "mounts: left behind: ..."."""
    found = []
    for field in fields(Snapshot):
        old, new = getattr(before, field.name), getattr(after, field.name)
        found += [f"{field.name}: left behind: {thing}" for thing in sorted(new - old)]
        found += [f"{field.name}: gone: {thing}" for thing in sorted(old - new)]
    return found


def _is_others(name: str, bench: str) -> bool:
    return cgroups.NAME in name and bench not in name


def _processes(bench: str) -> Iterator[psutil.Process]:
    """Living ones: how soon the machine's init collects a dead one is not up to us."""
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.NoSuchProcess, OSError):  # it ended meanwhile
            groups = Path(f"/proc/{process.pid}/cgroup").read_text()
            if process.status() != psutil.STATUS_ZOMBIE and not _is_others(groups, bench):
                yield process


def _namespaces(processes: list[psutil.Process]) -> Iterator[str]:
    for process in processes:
        for kind in ("net", "mnt"):
            with suppress(OSError):
                yield str(Path(f"/proc/{process.pid}/ns/{kind}").readlink())


def _sockets() -> Iterator[str]:
    """Names of Unix sockets that belong to libvirt or QEMU."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        name = line.split(maxsplit=7)[7:]
        if name and any(word in name[0] for word in WORDS):
            yield name[0]


def _cgroups(bench: str) -> Iterator[str]:
    for hierarchy in cgroups.hierarchies():
        for folder, _, _ in os.walk(hierarchy.mounted):
            if any(word in folder for word in WORDS) and not _is_others(folder, bench):
                yield folder


def _digests() -> Iterator[str]:
    for root in CONFIGURATION:
        for path in (root, *root.rglob("*")):
            if path.is_file():
                yield f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def main() -> int:
    command = sys.argv[sys.argv.index("--") + 1 :]
    bench = new_name()
    before = Snapshot.take(bench)
    code = subprocess.run(
        command,
        check=False,
        env=os.environ | {NAME_VARIABLE: bench},
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # the bench ends with whoever entered it
    ).returncode
    deadline = time.monotonic() + cgroups.REMOVAL_LIMIT
    while (found := differences(before, Snapshot.take(bench))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for line in found:
        print(line, file=sys.stderr)
    return code or bool(found)


if __name__ == "__main__":
    sys.exit(main())

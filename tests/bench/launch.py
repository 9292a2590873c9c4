"""Starts a command in a new bench and waits for it.

However this process ends, SIGKILL included, nothing is left: the kernel ends everything inside with it, and a
small process outside removes the control groups.
"""

import os
import secrets
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

from tests.bench import cgroups
from tests.bench.paths import BENCH, LIBVIRT, PROJECT
from tests.bench.syscalls import die_with_parent

NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")


NAME_VARIABLE = "HOSTAGENT_BENCH_NAME"
"""Environment: what to name the bench, for a caller that looks for it afterwards (left_over.py)."""


class Daemon(StrEnum):
    """libvirt's daemon that has the guests: the one for everything, or the QEMU driver's own (libvirt, "daemons")."""

    LIBVIRTD = "libvirtd"
    VIRTQEMUD = "virtqemud"


def new_name() -> str:
    return f"{cgroups.NAME}{secrets.token_hex(4)}"


def run_inside(
    command: list[str],
    *,
    keep: Path | None = None,
    kvm_node: bool = False,
    libvirt: str = LIBVIRT,
    daemon: Daemon = Daemon.LIBVIRTD,
) -> int:
    """Runs the command in a new bench and gives its exit code.

    keep: a folder for what the command changed in the root file system, instead of forgetting it.
    kvm_node: whether the bench has /dev/kvm.
    libvirt: which version of it; daemon: who has its guests.
    """
    groups = cgroups.create(os.environ.get(NAME_VARIABLE) or new_name())
    janitor = _start_janitor(groups)
    (BENCH / "root").mkdir(parents=True, exist_ok=True)

    def tie_and_place() -> None:
        die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        cgroups.join(groups)

    options = (f"--keep={keep or ''}", f"--kvm={int(kvm_node)}", f"--libvirt={libvirt}", f"--daemon={daemon}")
    inside = [sys.executable, "-m", "tests.bench.inside", *options]
    try:
        return subprocess.run(
            ["unshare", *NAMESPACES, "--fork", "--kill-child", "--", *inside, "--", *command],
            preexec_fn=tie_and_place,
            cwd=PROJECT,
            check=False,
        ).returncode
    finally:
        janitor.finish()


class _Janitor:
    """Removes the control groups once this process is gone or says so."""

    def __init__(self, pid: int, held: int) -> None:
        self._pid, self._held = pid, held

    def finish(self) -> None:
        os.close(self._held)
        os.waitpid(self._pid, 0)


def _start_janitor(groups: list[Path]) -> _Janitor:
    waits, held = os.pipe()  # Python closes both on exec, so only we hold the writing end
    pid = os.fork()
    if pid:
        os.close(waits)
        return _Janitor(pid, held)
    os.close(held)
    os.setsid()  # Ctrl-C is for the command, not for us
    os.read(waits, 1)
    cgroups.remove(groups)
    os._exit(0)

"""Runs a command inside the bench: python -m tests.bench.enter [--keep] [--libvirt VERSION] -- COMMAND...

The command gets new mount, pid, net, uts, ipc and cgroup namespaces and a root file system whose changes are
forgotten when it ends. Its exit code is ours.
"""

import argparse
import os
import shutil
import signal
import sys

from tests.bench import kvm
from tests.bench.launch import Daemon, run_inside
from tests.bench.paths import BENCH, GUEST, LIBVIRT, ROOTFS

KEPT = BENCH / "kept"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.enter", description=__doc__)
    parser.add_argument("--keep", action="store_true", help=f"leave what was changed in {KEPT}")
    parser.add_argument("--libvirt", choices=ROOTFS, default=LIBVIRT, help="its version, 9.0 unless given")
    parser.add_argument(
        "--daemon", type=Daemon, choices=list(Daemon), default=Daemon.LIBVIRTD, help="who has its guests"
    )
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("expected to run as root: namespaces and mounts need it")
    for needed in (ROOTFS[asked.libvirt], GUEST):
        if not needed.is_dir():
            parser.error(f"expected {needed} (hint: make ready)")
    if asked.keep:
        shutil.rmtree(KEPT, ignore_errors=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's: we wait for what it makes of it
    return run_inside(
        asked.command,
        keep=KEPT if asked.keep else None,
        kvm_node=kvm.is_usable(),
        libvirt=asked.libvirt,
        daemon=asked.daemon,
    )


if __name__ == "__main__":
    code = main()
    sys.exit(code if code >= 0 else 128 - code)

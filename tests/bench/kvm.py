"""Whether this machine can run Linux guests with KVM.

A /dev/kvm proves nothing: nested or restricted ones run firmware and then hang. So a guest is booted once,
and the answer kept until the machine's kernel changes.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.launch import run_inside
from tests.bench.paths import GUEST, KVM_VERDICT

LIMIT = 15
"""Seconds; where KVM works the guest counts on its console after two."""


def is_usable() -> bool:
    """Asked outside the bench."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    release = os.uname().release
    if not KVM_VERDICT.exists() or not KVM_VERDICT.read_text().startswith(f"{release} "):
        KVM_VERDICT.write_text(f"{release} {'yes' if _guest_boots() else 'no'}\n")
    return KVM_VERDICT.read_text().split() == [release, "yes"]


def _guest_boots() -> bool:
    return run_inside([sys.executable, "-m", "tests.bench.kvm"], kvm_node=True) == 0


def main() -> int:
    """Inside the bench: 0 if the test guest reaches user space."""
    console = Path("/tmp/console")
    machine = ["-accel", "kvm", "-cpu", "host", "-m", "256", "-display", "none", "-no-reboot"]
    system = ["-kernel", str(GUEST / "vmlinuz"), "-initrd", str(GUEST / "initramfs")]
    words = ["-append", "console=ttyS0 panic=-1 proof.halt", "-serial", f"file:{console}"]
    try:
        subprocess.run(
            ["qemu-system-x86_64", *machine, *system, *words],
            timeout=LIMIT,
            check=False,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return 1
    return 0 if console.exists() and "proof.halt: user space" in console.read_text(errors="replace") else 1


if __name__ == "__main__":
    sys.exit(main())

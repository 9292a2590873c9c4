"""Where the bench keeps what it built."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build"
GUEST = BUILD / "guest"
"""vmlinuz and initramfs of the test guest, made by vm-images/build."""
BENCH = BUILD / "bench"
ROOTFS = BENCH / "rootfs"
DEBS = BENCH / "debs"
"""The newer QEMU as packages, as somebody would hand them to `hostagent qemu add`."""
KVM_VERDICT = BENCH / "kvm"

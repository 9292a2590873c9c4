"""Where the bench keeps what it built."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build"
GUEST = BUILD / "guest"
"""vmlinuz and initramfs of the test guest, made by vm-images/build."""
BENCH = BUILD / "bench"
LIBVIRT = "9.0"
"""Debian 12's own version, which the bench has unless another is asked for."""
ROOTFS = {LIBVIRT: BENCH / "rootfs", "11.3": BENCH / "rootfs-11.3"}
"""A root file system for each version of libvirt."""
DEBS = BENCH / "debs"
"""The newer QEMU as packages, as somebody would hand them to `hostagent qemu add`."""
LIBVIRT_DEBS = BENCH / "libvirt-debs"
"""libvirt as packages: those that the bench has, and those of 11.3 with what they need."""
KVM_VERDICT = BENCH / "kvm"
ANALYZER = BENCH / "analyzer" / "analyze-migration.py"
"""QEMU's own reader of saved states."""

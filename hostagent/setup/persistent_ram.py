"""Guests' RAM on memory that outlives the kernel: a file system with DAX on persistent memory, mounted at boot.

Such memory is nothing else than RAM that the kernel was told to leave alone (its parameter memmap=SIZE!START: Linux,
Documentation/admin-guide/kernel-parameters.txt). Through kexec it stays as it is; after firmware nothing of it is left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent import processes
from hostagent.errors import Failed, Refused
from hostagent.setup.host_files import HostFiles, SystemMounts

MKFS_SECONDS = 120.0
MOUNT_SECONDS = 60.0
DEVICE_SECONDS = 20.0
_ALIGNMENT = 1 << 27  # sections of memory, as the kernel manages it
_ABOVE = 4 << 30  # below lies what devices and firmware use
_PARAMETER = re.compile(r"(?:^|[\s\"'])memmap=([0-9]+)([KMGT]?)!([0-9]+)([KMGT]?)(?=[\s\"']|$)")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True)
class Region:
    """Physical memory, in bytes."""

    start: int
    size: int

    @property
    def parameter(self) -> str:
        """For the kernel's command line."""
        return f"memmap={self.size >> 20}M!{self.start >> 20}M"


def regions_of(text: str) -> tuple[Region, ...]:
    """What a kernel's command line, or lines for GRUB, have left alone."""
    return tuple(
        Region(int(start) << _UNITS[start_unit], int(size) << _UNITS[size_unit])
        for size, size_unit, start, start_unit in _PARAMETER.findall(text)
    )


def aligned(size: int) -> int:
    """The bytes that are reserved when so many are asked for."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def choose_region(iomem: str, size: int) -> Region:
    """The highest piece of RAM of that size; `iomem` is /proc/iomem. Refused when there is none."""
    found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : System RAM$", iomem, re.MULTILINE)
    size = aligned(size)
    largest = 0
    for low, high in sorted(((int(low, 16), int(high, 16) + 1) for low, high in found), reverse=True):
        start = (high - size) // _ALIGNMENT * _ALIGNMENT
        if start >= max(low, _ABOVE):
            return Region(start, size)
        largest = max(largest, high - max(low, _ABOVE))
    raise Refused(
        "reserving memory for guests",
        expected=f"{size >> 20} MiB of RAM in one piece above 4 GiB",
        found=f"{largest >> 20} MiB",
        hint="a smaller --reserve",
    )


def reserved(cmdline: str) -> bool:
    """Whether this kernel was told to leave memory alone."""
    return re.search(r"(^|\s)memmap=[^\s!]+![^\s]+", cmdline) is not None


def mount_ram(device: Path, target: Path, uid: int, gid: int, *, fresh: bool) -> None:
    """Mount it for QEMU's user; fresh: what is on it is nobody's, and a new file system is made first."""
    if any(mount.target == target for mount in SystemMounts().mounts()):
        return
    _wait_for(device)
    if fresh:
        require_set_aside(device)
        processes.run(_mkfs(device), within_seconds=MKFS_SECONDS)
    HostFiles().make_folder(target, 0o700, 0, 0)
    options = "dax=always,nosuid,nodev,noexec"
    processes.run(["mount", "-t", "ext4", "-o", options, str(device), str(target)], within_seconds=MOUNT_SECONDS)
    HostFiles().make_folder(target, 0o700, uid, gid)


def require_set_aside(device: Path, *, root: Path = Path("/")) -> None:
    """Refused unless it is RAM that this kernel was told to leave alone: an NVDIMM has somebody's data."""
    # Where it begins: Linux, Documentation/ABI/testing/sysfs-bus-nvdimm, of the namespace that the device is.
    place = root / "sys/class/block" / device.name / "device/resource"
    try:
        start = int(place.read_text(), 0)
        told = regions_of((root / "proc/cmdline").read_text())
    except (OSError, ValueError) as error:
        raise Failed(f"looking where {device} begins", found=str(error)) from error
    if not any(region.start <= start < region.start + region.size for region in told):
        raise Refused(
            f"making a file system on {device}",
            expected="memory that the kernel was told to leave alone (memmap=SIZE!START)",
            found=f"memory at {start:#x}, which may have somebody's data",
            hint="on a host with such memory of its own, kernel swaps are not possible yet",
        )


def _mkfs(device: Path) -> Sequence[str]:
    # DAX needs blocks as large as pages; nothing is kept for root; no time is spent on writing inodes beforehand.
    return ("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", str(device))


def _wait_for(device: Path) -> None:
    ends = time.monotonic() + DEVICE_SECONDS
    while not device.is_block_device():
        if time.monotonic() > ends:
            raise Failed(
                f"mounting {device} for guests' RAM",
                expected="that persistent memory",
                found="no such device",
                hint="hostagent setup --kernel-swaps says what is missing",
            )
        time.sleep(0.05)

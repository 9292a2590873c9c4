"""What a host needs so that guests' RAM outlives its kernel: memory that it leaves alone, and a unit at boot."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Refused
from hostagent.setup.boot_unit import boot_unit, is_set_up
from hostagent.setup.host_files import HostFiles
from hostagent.setup.persistent_ram import Region, aligned, choose_region, mount_ram, regions_of, reserved
from hostagent.setup.setup_tasks import Line, Mounter, Need, Task, mount_of
from hostagent.setup.whole_file import WholeFile

DEVICE = Path("/dev/pmem0")
GRUB = Path("/etc/default/grub.d/hostagent.cfg")
MENU = Path("/boot/grub/grub.cfg")
UPDATE_GRUB = Path("/usr/sbin/update-grub")
SETTINGS = Path("/etc/hostagent/hostagent.toml.d/kernel-swaps.toml")

REBOOT = "reboot the host once: only as it boots it leaves that memory alone"
GIVE_BACK = "reboot the host once: only as it boots the kernel takes back the memory that was for guests"


def _physical_memory() -> int:
    """Bytes that the running kernel has for itself and for what it runs."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class KernelFacts:
    """What is asked of the running kernel."""

    leapt: Callable[[], bool]  # whether another kernel started it, for hostagent
    cmdline: Callable[[], str] = Path("/proc/cmdline").read_text
    iomem: Callable[[], str] = Path("/proc/iomem").read_text
    memory: Callable[[], int] = _physical_memory


@dataclass(frozen=True)
class PersistentRam:
    """The file system on that memory; from then on the unit mounts it as the host boots."""

    target: Path
    uid: int
    gid: int
    kernel: KernelFacts
    files: HostFiles
    mounter: Mounter
    restarts_libvirtd: bool = True

    def look(self) -> Need:
        name, why = str(self.target), "guests' RAM files are on persistent memory there, reached by QEMU's user alone"
        mount = mount_of(self.target, self.mounter.mounts())
        here = mount if mount is not None and mount.target == self.target else None
        if here is not None and here.outlives_the_kernel:
            return Need(name, why, satisfied=True)
        if here is not None and here.kind != "tmpfs":
            return Need(name, why, False, f"mount {DEVICE} there", f"{here.kind} mounted on {self.target}")
        if here is None and reserved(self.kernel.cmdline()):
            return Need(name, why, False, f"make a file system on {DEVICE}, and mount it there with DAX")
        return Need(name, why, False, f"{REBOOT}; then {DEVICE} is mounted there")

    def apply(self) -> None:
        """A tmpfs that is there has guests' RAM on it until the host reboots."""
        if not any(mount.target == self.target for mount in self.mounter.mounts()) and reserved(self.kernel.cmdline()):
            mount_ram(DEVICE, self.target, self.uid, self.gid, fresh=not self.kernel.leapt())

    def keep_because(self) -> str:
        """Whatever file is there may be the RAM of a guest, running or held."""
        found = self.files.some_files_below(self.target) if self._is_ours() else ()
        return f"files in {self.target}: {', '.join(map(str, found))}" if found else ""

    def undo(self) -> str:
        if not self._is_ours():
            return ""
        self.mounter.unmount(self.target)
        self.files.remove_empty_folder(self.target)
        return f"unmounted {self.target}"

    def _is_ours(self) -> bool:
        """It is when the unit is: that mounts it."""
        here = [mount for mount in self.mounter.mounts() if mount.target == self.target]
        return bool(here) and here[-1].outlives_the_kernel and is_set_up(self.files)


@dataclass(frozen=True)
class Without:
    """What another task puts on a host, taken away: the tmpfs that persistent memory stands in for."""

    task: Line
    name: str
    why: str
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        theirs = self.task.theirs()
        if not theirs and not self.task.is_there():
            return Need(self.name, self.why, satisfied=True)
        in_the_way = f"somebody else's line in {self.task.path}: {theirs}" if theirs else ""
        return Need(self.name, self.why, False, f"take setup's {self.name} away", in_the_way)

    def apply(self) -> None:
        self.task.undo()

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        return ""


def swap_tasks(files: HostFiles, size: int | None, kernel: KernelFacts) -> tuple[Task, ...]:
    """Memory, settings and the unit; `size` in bytes, None for what is reserved already, or half of what there is."""
    return _files(files, _grub_text(files, size, kernel))


def swap_tasks_to_undo(files: HostFiles) -> tuple[Task, ...]:
    """The same, whatever is reserved."""
    return _files(files, "")


def gives_back(files: HostFiles, kernel: KernelFacts) -> bool:
    """Whether the running kernel leaves memory alone that the next boot does not."""
    return files.read(GRUB) is None and bool(_given_up(files, kernel.cmdline()))


def _files(files: HostFiles, grub: str) -> tuple[Task, ...]:
    update_grub = (("update-grub",),)
    return (
        WholeFile(
            "reserved memory",
            "the kernel leaves it alone, and so does the next one",
            GRUB,
            grub,
            files,
            after=update_grub,
            counts=lambda: set(regions_of(grub)) <= set(regions_of(_text(files, MENU))),
            once_empty=update_grub,
            in_the_way="" if files.is_there(UPDATE_GRUB) else f"no {UPDATE_GRUB}: only GRUB as Debian has it is known",
        ),
        WholeFile(
            "settings",
            "hostagent knows where guests' RAM is",
            SETTINGS,
            f'[setup]\nram_device = "{DEVICE}"\n',
            files,
            folders=(SETTINGS.parent, SETTINGS.parent.parent),
        ),
        boot_unit(files),
    )


def _grub_text(files: HostFiles, size: int | None, kernel: KernelFacts) -> str:
    """Memory that the running kernel leaves alone already is not moved: guests may have their RAM there."""
    there, running = _text(files, GRUB), kernel.cmdline()
    for region in regions_of(there):
        if size is None or region.size == aligned(size):
            return there
        if region in regions_of(running):
            raise Refused(
                "reserving memory for guests",
                expected=f"--reserve {region.size >> 20}M, as is reserved, or none",
                found=f"{aligned(size) >> 20}M",
                hint="for another size: hostagent setup --undo, and reboot the host first",
            )
    for region in _given_up(files, running):
        if size is None or region.size == aligned(size):
            return _grub_line(region)
    return _grub_line(choose_region(kernel.iomem(), kernel.memory() // 2 if size is None else size))


def _given_up(files: HostFiles, running: str) -> list[Region]:
    """What the running kernel leaves alone, and the next boot will not."""
    menu = regions_of(_text(files, MENU))
    return [region for region in regions_of(running) if region not in menu]


def _text(files: HostFiles, path: Path) -> str:
    return (files.read(path) or b"").decode(errors="replace")


def _grub_line(region: Region) -> str:
    said = "# By hostagent setup: memory for guests that outlives the kernel."
    return f'{said}\nGRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {region.parameter}"\n'

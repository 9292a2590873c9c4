"""What a host needs so that guests' RAM outlives its kernel: memory that it leaves alone, and a unit at boot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostagent import processes
from hostagent.setup.host_files import HostFiles
from hostagent.setup.persistent_ram import Region, choose_region, mount_ram, reserved
from hostagent.setup.setup_tasks import Mounter, Need, Task, mount_of

DEVICE = Path("/dev/pmem0")
UNIT = Path("/etc/systemd/system/hostagent-boot.service")
GRUB = Path("/etc/default/grub.d/hostagent.cfg")
SETTINGS = Path("/etc/hostagent/hostagent.toml.d/kernel-swaps.toml")
_SECONDS = 120.0

REBOOT = "reboot the host once: only as it boots it leaves that memory alone"


@dataclass(frozen=True)
class WholeFile:
    """A file that is all ours, and what must be run for it to count."""

    name: str
    why: str
    path: Path
    content: str
    files: HostFiles
    after: tuple[tuple[str, ...], ...] = ()
    after_undo: tuple[tuple[str, ...], ...] = ()
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        if self.files.read(self.path) == self.content.encode():
            return Need(self.name, self.why, satisfied=True)
        then = "; then ".join(["", *(" ".join(argv) for argv in self.after)])
        return Need(self.name, self.why, satisfied=False, change=f"write {self.path}{then}")

    def apply(self) -> None:
        if self.files.folder(self.path.parent) is None:
            self.files.make_folder(self.path.parent, 0o755, 0, 0)
        self.files.write(self.path, self.content.encode(), mode=0o644)
        _run(self.after)

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        if self.files.read(self.path) is None:
            return ""
        self.files.write(self.path, None, mode=0)
        _run(self.after_undo)
        return f"removed {self.path}"


@dataclass(frozen=True)
class PersistentRam:
    """The file system on that memory; from then on the unit mounts it as the host boots."""

    target: Path
    uid: int
    gid: int
    cmdline: Callable[[], str]
    leapt: Callable[[], bool]
    files: HostFiles
    mounter: Mounter
    restarts_libvirtd: bool = True

    def look(self) -> Need:
        name, why = str(self.target), "guests' RAM files are on persistent memory there, reached by QEMU's user alone"
        mount = mount_of(self.target, self.mounter.mounts())
        if mount is not None and mount.target == self.target and mount.kind == "ext4":
            return Need(name, why, satisfied=True)
        if not reserved(self.cmdline()):
            return Need(name, why, satisfied=False, change=f"{REBOOT}; then {DEVICE} is mounted there")
        in_use = "" if mount is None or mount.target != self.target else f"a {mount.kind} mounted there"
        return Need(name, why, False, f"make a file system on {DEVICE}, and mount it there with DAX", in_use)

    def apply(self) -> None:
        if reserved(self.cmdline()):
            mount_ram(DEVICE, self.target, self.uid, self.gid, fresh=not self.leapt())

    def keep_because(self) -> str:
        found = self.files.some_files_below(self.target) if self._is_mounted() else ()
        return f"files in {self.target}: {', '.join(map(str, found))}" if found else ""

    def undo(self) -> str:
        if not self._is_mounted():
            return ""
        self.mounter.unmount(self.target)
        return f"unmounted {self.target}"

    def _is_mounted(self) -> bool:
        return any(mount.target == self.target and mount.kind == "ext4" for mount in self.mounter.mounts())


@dataclass(frozen=True)
class Without:
    """What another task puts on a host, taken away: the tmpfs that persistent memory stands in for."""

    task: Task
    name: str
    why: str
    restarts_libvirtd: bool = False

    def look(self) -> Need:
        there = self.task.look().satisfied
        return Need(self.name, self.why, not there, f"take setup's {self.name} away" if there else "")

    def apply(self) -> None:
        self.task.undo()

    def keep_because(self) -> str:
        return ""

    def undo(self) -> str:
        return ""


def swap_tasks(files: HostFiles, size: int, iomem: str) -> tuple[Task, ...]:
    """Memory, settings and the unit; `size` in bytes, `iomem` is /proc/iomem."""
    there = (files.read(GRUB) or b"").decode(errors="replace")
    line = there or _grub_line(choose_region(iomem, size))
    enable = (("systemctl", "daemon-reload"), ("systemctl", "enable", UNIT.name))
    return (
        WholeFile(
            "reserved memory",
            "the kernel leaves it alone, and so does the next one",
            GRUB,
            line,
            files,
            after=(("update-grub",),),
            after_undo=(("update-grub",),),
        ),
        WholeFile(
            "settings",
            "hostagent knows where guests' RAM is",
            SETTINGS,
            f'[setup]\nram_device = "{DEVICE}"\n',
            files,
        ),
        WholeFile(
            UNIT.name,
            "held guests are resumed under the new kernel, and nobody else starts them",
            UNIT,
            unit_text(),
            files,
            after=enable,
            after_undo=(("systemctl", "daemon-reload"),),
        ),
    )


def _grub_line(region: Region) -> str:
    said = "# By hostagent setup: memory for guests that outlives the kernel."
    return f'{said}\nGRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {region.parameter}"\n'


def unit_text(program: tuple[str, ...] = (sys.executable, "-m", "hostagent.cli")) -> str:
    """Ready once libvirt's daemon may start; it then goes on with the guests."""
    return f"""\
# By hostagent setup: guests that were held over a change of kernel are resumed before anybody else starts them.
[Unit]
Description=Guests that hostagent holds over a change of kernel
Documentation=https://libvirt.org/hooks.html
After=local-fs.target
Before=libvirtd.service virtqemud.service libvirt-guests.service
ConditionPathExists=/var/lib/hostagent

[Service]
Type=notify
ExecStart={" ".join(program)} recover --at-boot
TimeoutStartSec=300
# 5: a person has to see to a guest; the journal says to which.
SuccessExitStatus=5

[Install]
WantedBy=multi-user.target
"""


def _run(commands: tuple[tuple[str, ...], ...]) -> None:
    for argv in commands:
        processes.run(argv, within_seconds=_SECONDS)

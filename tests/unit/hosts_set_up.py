"""Hosts to set up: each below a root of its own, with mounts that are only remembered."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from hostagent.errors import Failed
from hostagent.setup.host_files import HostFiles, Mount
from hostagent.setup.kernel_swaps import KernelFacts
from hostagent.setup.setup_host import Report, Wanted, apply, check, tasks, tasks_to_undo, undo

CONF = b'# libvirt\n#memory_backing_dir = "/dev/shm"\n\nuser = "libvirt-qemu"'
FSTAB = b"/dev/vda1 / ext4 defaults 0 1\n"
RAM = Path("/var/lib/libvirt/ram")


@dataclass
class FakeMounts:
    """Remembers; a mounted tmpfs is the folder itself."""

    root: Path
    seen: list[Mount] = field(default_factory=lambda: [Mount(Path("/"), "ext4")])
    options: str = ""
    busy: bool = False

    def mounts(self) -> tuple[Mount, ...]:
        return tuple(self.seen)

    def mount_tmpfs(self, target: Path, options: str) -> None:
        self.options = options
        self.seen.append(Mount(target, "tmpfs", "hostagent-ram"))
        (self.root / target.relative_to("/")).chmod(0o700)

    def unmount(self, target: Path) -> None:
        if self.busy:
            raise Failed("running umount", expected="exit 0", found="32: target is busy")
        self.seen.remove(next(mount for mount in reversed(self.seen) if mount.target == target))
        for entry in (self.root / target.relative_to("/")).iterdir():
            shutil.rmtree(entry)


@dataclass
class Host:
    """A host to set up."""

    root: Path
    wanted: Wanted
    files: HostFiles
    mounts: FakeMounts
    ram_paths: tuple[Path, ...] = ()

    def check(self) -> dict[str, bool]:
        needs = check(tasks(self.wanted, self.files, self.mounts, self.ram_paths))
        return {need.name: need.satisfied for need in needs}

    def apply(self) -> Report:
        return apply(tasks(self.wanted, self.files, self.mounts, self.ram_paths))

    def undo(self) -> Report:
        return undo(tasks_to_undo(self.wanted, self.files, self.mounts, KernelFacts(leapt=lambda: False)))

    def path(self, path: str | Path) -> Path:
        return self.root / Path(path).relative_to("/")

    def everything(self) -> dict[str, object]:
        """Every path of the host, with content and mode."""
        return {
            str(path.relative_to(self.root)): (
                path.lstat().st_mode,
                path.read_bytes() if path.is_file() else None,
            )
            for path in sorted(self.root.rglob("*"))
        }


def new_host(root: Path) -> Host:
    """One that nothing was done to yet."""
    for folder in ("etc/libvirt/hooks", "var/lib/libvirt", "run"):
        (root / folder).mkdir(parents=True)
    (root / "etc/libvirt/qemu.conf").write_bytes(CONF)
    (root / "etc/fstab").write_bytes(FSTAB)
    wanted = Wanted(
        state=Path("/var/lib/hostagent"),
        qemu_conf=Path("/etc/libvirt/qemu.conf"),
        memory_backing_dir=RAM,
        ram_size="50%",
        held=Path("/run/hostagent/held"),
        qemu_uid=os.getuid(),
        qemu_gid=os.getgid(),
        root_uid=os.getuid(),
        root_gid=os.getgid(),
    )
    return Host(root, wanted, HostFiles(root), FakeMounts(root))

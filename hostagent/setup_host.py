"""What a host needs so that its guests' RAM can be kept: looked at, put in place, taken away again.

libvirt 9.0 puts RAM files at ``<memory_backing_dir>/libvirt/qemu/<id>-<name>/`` (qemu_conf.c,
virQEMUDriverConfigLoadMemoryEntry). The daemon makes ``libvirt/qemu`` as it starts, gives it to QEMU's user and
opens it for passing (qemu_driver.c, qemuStateInitialize); each guest's folder is 0700 and its user's
(qemu_process.c, qemuProcessBuildDestroyMemoryPathsImpl). Of memory_backing_dir itself it only expects that
QEMU's user can pass, so 0700 owned by that user keeps everybody else out.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostagent import marked_block
from hostagent.errors import Refused
from hostagent.host_files import HostFiles, Mount

RESTART = "restart libvirtd: only as it starts it reads qemu.conf and makes its folder in memory_backing_dir"


@dataclass(frozen=True)
class Need:
    """One thing the host needs."""

    name: str
    why: str
    satisfied: bool
    change: str = ""  # what meeting it does, in words
    in_the_way: str = ""  # why setup will not meet it, in words


@dataclass(frozen=True)
class Report:
    """What was done, in words, and whether libvirtd has to be restarted for it to count."""

    done: tuple[str, ...]
    restart_libvirtd: bool


@dataclass(frozen=True)
class Wanted:
    """What setup works towards."""

    state: Path
    runtime: Path
    qemu_conf: Path
    fstab: Path
    memory_backing_dir: Path  # ours; another one that stands in qemu.conf wins
    ram_size: str
    qemu_uid: int
    qemu_gid: int
    root_uid: int = 0
    root_gid: int = 0
    huge_pages: bool = True  # whether this kernel's tmpfs knows huge=


class Mounter(Protocol):
    """The host's mounts."""

    def mounts(self) -> tuple[Mount, ...]:
        """What is mounted, in order; of two at one place the later one is seen."""

    def mount_tmpfs(self, target: Path, options: str) -> None:
        """Mount a tmpfs; Failed when that cannot be."""

    def unmount(self, target: Path) -> None:
        """Unmount; Failed when it is in use."""


class Task(Protocol):
    """One need, and how it is met and given up again."""

    @property
    def restarts_libvirtd(self) -> bool:
        """Whether a change counts only for a libvirtd started after it."""

    def look(self) -> Need:
        """How it stands; changes nothing."""

    def apply(self) -> None:
        """Meet it."""

    def keep_because(self) -> str:
        """Why it cannot be undone now, "" when it can."""

    def undo(self) -> str:
        """Give up what apply made, and only that; in words, "" for nothing."""


def check(tasks: Sequence[Task]) -> tuple[Need, ...]:
    """How every need stands; changes nothing."""
    return tuple(task.look() for task in tasks)


def apply(tasks: Sequence[Task]) -> Report:
    """Meet the needs that are not met, in order; Refused before anything is touched when one cannot be."""
    todo = [(task, need) for task, need in zip(tasks, check(tasks), strict=True) if not need.satisfied]
    for _, need in todo:
        if need.in_the_way:
            raise Refused(f"setting up {need.name}", expected="a place for guests' RAM", found=need.in_the_way)
    for task, _ in todo:
        task.apply()
    restart = any(task.restarts_libvirtd for task, _ in todo)
    return Report(tuple(need.change for _, need in todo), restart)


def undo(tasks: Sequence[Task]) -> Report:
    """Take away what setup put in place, newest first; Refused before anything is touched when one must stay."""
    for task in tasks:
        if why := task.keep_because():
            raise Refused("undoing the setup", expected="nothing in use", found=why)
    undone = [(task, words) for task in reversed(tasks) if (words := task.undo())]
    return Report(tuple(words for _, words in undone), any(task.restarts_libvirtd for task, _ in undone))


def tasks(wanted: Wanted, files: HostFiles, mounter: Mounter, ram_paths: Collection[Path]) -> tuple[Task, ...]:
    """What to check and apply on this host; `ram_paths` are the RAM files of all running guests."""
    ram = wanted.memory_backing_dir
    conf = files.read(wanted.qemu_conf)
    theirs = setting(marked_block.take_out(conf), "memory_backing_dir")
    every = tasks_to_undo(wanted, files, mounter, ram_paths)
    if theirs is None or Path(theirs) == ram or setting(conf, "memory_backing_dir") == str(ram):
        return every
    return (*(task for task in every if isinstance(task, Directory)), TheirRamFolder(Path(theirs), mounter))


def tasks_to_undo(
    wanted: Wanted, files: HostFiles, mounter: Mounter, ram_paths: Collection[Path]
) -> tuple[Task, ...]:
    """Everything that setup may ever have put in place."""
    ram, paths = wanted.memory_backing_dir, tuple(sorted(ram_paths))
    fstab = Line(
        name="fstab",
        why="the tmpfs is there after a reboot, before libvirtd starts",
        path=wanted.fstab,
        # nofail: a host without it still boots, and its guests with RAM in files fail to start, loudly.
        line=f"hostagent-ram {_fstab_word(ram)} tmpfs {tmpfs_options(wanted)},nofail,"
        "x-systemd.before=libvirtd.service,x-systemd.before=virtqemud.service 0 0",
        already=rf"^[^#\s]\S*[ \t]+{re.escape(_fstab_word(ram))}[ \t]+tmpfs[ \t]",
        mode=0o644,
        files=files,
    )
    return (
        Directory(wanted, wanted.state, 0o711, "the journal and other QEMU versions live there", files),
        Directory(wanted, wanted.runtime, 0o700, "sockets and locks of a running update live there", files),
        fstab,
        RamMount(wanted, fstab, files, mounter, paths),
        Line(
            name="memory_backing_dir",
            why="libvirt puts the guests' RAM files below it",
            path=wanted.qemu_conf,
            line=f'memory_backing_dir = "{ram}"',
            already=rf"""^[ \t]*memory_backing_dir[ \t]*=[ \t]*["']{re.escape(str(ram))}/*["']""",
            mode=0o600,
            files=files,
            restarts_libvirtd=True,
            # libvirtd finds and clears away a guest's RAM folder by the setting it has then.
            in_the_way=_ram_in_use([path for path in paths if not path.is_relative_to(ram)]),
        ),
    )


def setting(conf: bytes | None, key: str) -> str | None:
    """A text from a libvirt configuration file; of several libvirt takes the first (virConfGetValue)."""
    text = (conf or b"").decode("utf-8", "surrogateescape")
    found = re.search(rf"""^[ \t]*{re.escape(key)}[ \t]*=[ \t]*(["'])(.*?)\1""", text, re.MULTILINE)
    return found[2] if found else None


def tmpfs_options(wanted: Wanted) -> str:
    """0700 and QEMU's user's: it reaches its guests' folders, nobody else can even list them."""
    huge = ",huge=within_size" if wanted.huge_pages else ""
    owner = f"uid={wanted.qemu_uid},gid={wanted.qemu_gid}"
    return f"mode=0700,{owner},size={wanted.ram_size}{huge},nosuid,nodev,noexec"


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that a path lies on."""
    over = [mount for mount in mounts if path.is_relative_to(mount.target)]
    return max(reversed(over), key=lambda mount: len(mount.target.parts), default=None)


def _fstab_word(path: Path) -> str:
    """A path as fstab(5) wants it: blanks and the like in octal."""
    return re.sub(r"[\s\\#]", lambda found: f"\\{ord(found[0]):03o}", str(path))


def _ram_in_use(paths: Sequence[Path]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"running guests with their RAM in {', '.join(map(str, paths[:3]))}{more}"

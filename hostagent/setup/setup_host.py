"""What a host needs so that its guests' RAM can be kept: looked at, put in place, taken away again.

libvirt 9.0 puts RAM files at ``<memory_backing_dir>/libvirt/qemu/<id>-<name>/`` (qemu_conf.c,
virQEMUDriverConfigLoadMemoryEntry). The daemon makes ``libvirt/qemu`` as it starts, gives it to QEMU's user
and opens it for passing (qemu_driver.c, qemuStateInitialize); each guest's folder is 0700 and its user's
(qemu_process.c, qemuProcessBuildDestroyMemoryPathsImpl). Of memory_backing_dir itself it only expects that
QEMU's user can pass, so 0700 owned by that user keeps everybody else out.
"""

import pwd
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostagent.config import Config
from hostagent.errors import Refused
from hostagent.hypervisor.qemu_conf import setting
from hostagent.libvirt_files.hook import HOOK, hook_text
from hostagent.setup import marked_block
from hostagent.setup.host_files import TMPFS_NAME, HostFiles, load_profile
from hostagent.setup.kernel_swaps import KernelFacts, PersistentRam, Without, swap_tasks, swap_tasks_to_undo
from hostagent.setup.setup_tasks import (
    Directory,
    Hook,
    Line,
    Mounter,
    Need,
    RamMount,
    Rule,
    Task,
    TheirRamFolder,
)

RESTART = "restart libvirtd: only as it starts it reads qemu.conf, looks for hooks and makes its folder for RAM"
_BUILT_IN_USERS = ("libvirt-qemu", "qemu")  # QEMU_USER of Debian's and of Fedora's build
_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
_PROFILES = Path("/etc/apparmor.d")
_DAEMONS = ("libvirtd", "virtqemud")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@dataclass(frozen=True)
class Wanted:
    """What setup works towards."""

    state: Path
    held: Path
    qemu_conf: Path
    memory_backing_dir: Path  # ours; another one that stands in qemu.conf wins
    ram_size: str
    qemu_uid: int
    qemu_gid: int
    fstab: Path = Path("/etc/fstab")
    root_uid: int = 0
    root_gid: int = 0
    huge_pages: bool = True  # whether this kernel's tmpfs knows huge=
    confined: tuple[str, ...] = ()  # libvirt's daemons that AppArmor confines


@dataclass(frozen=True)
class Report:
    """What was done, in words, and whether libvirtd has to be restarted for it to count: see RESTART."""

    done: tuple[str, ...]
    restart_libvirtd: bool


def wanted_on_this_host(config: Config, files: HostFiles) -> Wanted:
    """From the settings, and from the user that libvirt runs QEMU as."""
    uid, gid = _identity(setting(files.read(config.paths.qemu_conf), "user"))
    return Wanted(
        state=config.paths.state,
        held=config.paths.held,
        qemu_conf=config.paths.qemu_conf,
        memory_backing_dir=config.setup.memory_backing_dir,
        ram_size=config.setup.ram_size,
        qemu_uid=uid,
        qemu_gid=gid,
        huge_pages=_HUGE_PAGES.exists(),
        confined=_confined(files),
    )


def _confined(files: HostFiles) -> tuple[str, ...]:
    enabled = files.read(_APPARMOR)
    if enabled is None or not enabled.startswith(b"Y"):
        return ()
    return tuple(name for name in _DAEMONS if files.read(_PROFILES / f"usr.sbin.{name}") is not None)


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
    done = [(task, need) for task, need in todo if task.look().satisfied]  # the others wait for a reboot
    return Report(tuple(need.change for _, need in done), any(task.restarts_libvirtd for task, _ in done))


def undo(tasks: Sequence[Task]) -> Report:
    """Take away what setup put in place, newest first; Refused, and nothing touched, when one must stay."""
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
    every = _tasks(wanted, files, mounter, ram_paths)
    if theirs is None or Path(theirs) == ram or setting(conf, "memory_backing_dir") == str(ram):
        return every
    return (
        *(task for task in every if isinstance(task, Directory | Hook | Rule)),
        TheirRamFolder(Path(theirs), mounter),
    )


def kernel_swap_tasks(
    wanted: Wanted,
    files: HostFiles,
    mounter: Mounter,
    ram_paths: Collection[Path],
    *,
    size: int | None,
    kernel: KernelFacts,
) -> tuple[Task, ...]:
    """The same for a host whose guests' RAM is to outlive its kernel: on persistent memory, not on a tmpfs.

    `size` in bytes; None for what is reserved already, or else half of the host's.
    """
    every = _tasks(wanted, files, mounter, ram_paths)
    fstab = next(task for task in every if isinstance(task, Line) and task.name == "fstab")
    kept = [task for task in every if task is not fstab and not isinstance(task, RamMount)]
    # Last but for the mount: a host that is cut off before it boots with a tmpfs, and not with RAM on its disk.
    gone = Without(fstab, "tmpfs in fstab", "guests' RAM is not to be on a tmpfs from the next boot on")
    return (*kept, *swap_tasks(files, size, kernel), gone, _persistent(wanted, files, mounter, kernel))


def tasks_to_undo(wanted: Wanted, files: HostFiles, mounter: Mounter, kernel: KernelFacts) -> tuple[Task, ...]:
    """Everything that setup may ever have put in place."""
    ram = _persistent(wanted, files, mounter, kernel)
    return (*_tasks(wanted, files, mounter, ()), *swap_tasks_to_undo(files), ram)


def _persistent(wanted: Wanted, files: HostFiles, mounter: Mounter, kernel: KernelFacts) -> PersistentRam:
    return PersistentRam(wanted.memory_backing_dir, wanted.qemu_uid, wanted.qemu_gid, kernel, files, mounter)


def _tasks(wanted: Wanted, files: HostFiles, mounter: Mounter, ram_paths: Collection[Path]) -> tuple[Task, ...]:
    ram, root = wanted.memory_backing_dir, (wanted.root_uid, wanted.root_gid)
    elsewhere = [path for path in sorted(ram_paths) if not path.is_relative_to(ram)]
    fstab = Line(
        name="fstab",
        why="the tmpfs is there after a reboot, before libvirtd starts",
        path=wanted.fstab,
        # nofail: a host without it still boots, and its guests with RAM in files fail to start, loudly.
        line=f"{TMPFS_NAME} {_fstab_word(ram)} tmpfs {tmpfs_options(wanted)},nofail,"
        "x-systemd.before=libvirtd.service,x-systemd.before=virtqemud.service 0 0",
        already=rf"^[^#\s]\S*[ \t]+{re.escape(_fstab_word(ram))}[ \t]+tmpfs[ \t]",
        mode=0o644,
        files=files,
    )
    return (
        Directory(wanted.state, "the journal and other QEMU versions live there", 0o711, *root, files),
        fstab,
        RamMount(ram, tmpfs_options(wanted), wanted.qemu_uid, wanted.qemu_gid, fstab, files, mounter),
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
            in_the_way=_in_use(elsewhere),
        ),
        Hook(HOOK, hook_text(wanted.held), wanted.held, *root, files),
        *_rules(wanted, files),
    )


def _rules(wanted: Wanted, files: HostFiles) -> Iterator[Rule]:
    """What AppArmor must let through: libvirt starts QEMU only from where its profiles say, /usr/bin and the like."""
    trees = wanted.state / "qemu"
    if wanted.confined:
        yield _rule("guests", "abstractions/libvirt-qemu", f'"{trees}/**" rmix,', None, files)
    for name in wanted.confined:
        profile = _PROFILES / f"usr.sbin.{name}"
        yield _rule(name, profile.name, f'"{trees}/*/usr/bin/qemu-system-*" PUx,', profile, files)


def _rule(who: str, local: str, rule: str, profile: Path | None, files: HostFiles) -> Rule:
    return Rule(
        name=f"AppArmor, for {who}",
        why="other QEMU versions than the system's own may be run",
        path=_PROFILES / "local" / local,
        line=f"  {rule}",
        already=rf"^\s*{re.escape(rule)}",
        mode=0o644,
        files=files,
        profile=profile,
        load=load_profile,
    )


def tmpfs_options(wanted: Wanted) -> str:
    """0700 and QEMU's user's: it reaches its guests' folders, nobody else can even list them."""
    huge = ",huge=within_size" if wanted.huge_pages else ""
    owner = f"uid={wanted.qemu_uid},gid={wanted.qemu_gid}"
    return f"mode=0700,{owner},size={wanted.ram_size}{huge},nosuid,nodev,noexec"


def _fstab_word(path: Path) -> str:
    """A path as fstab(5) wants it: blanks and the like in octal."""
    return re.sub(r"[\s\\#]", lambda found: f"\\{ord(found[0]):03o}", str(path))


def _in_use(paths: Sequence[Path]) -> str:
    if not paths:
        return ""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"running guests with their RAM in {', '.join(map(str, paths[:3]))}{more}"


def _identity(user: str | None) -> tuple[int, int]:
    """Uid and gid of QEMU's user: a name or "+107" as in qemu.conf, None for what libvirt was built with."""
    if user is not None and re.fullmatch(r"\+?[0-9]+", user):
        uid = int(user)
        known = [entry for entry in pwd.getpwall() if entry.pw_uid == uid]
        return uid, known[0].pw_gid if known else uid
    for name in (user,) if user is not None else _BUILT_IN_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise Refused(
        "finding QEMU's user",
        expected=f"a user {user or ' or '.join(_BUILT_IN_USERS)}",
        found="none",
        hint="is libvirt installed? qemu.conf's user = names another one",
    )

"""What surrounds a process on the host, read from /proc (proc(5), cgroups(7)), so that a new QEMU gets the old one's.

libvirt sets these when it starts a guest and does not set them again when its daemon comes back, so whatever the new
process lacks stays lost without a word. `differences` is what a test and every handover look at.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed
from hostagent.hypervisor import ProcessId

PROC = Path("/proc")
_ENDED = {"Z", "X"}
_PF_EXITING = 0x4  # include/linux/sched.h
_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)

# Lines of /proc/PID/status that must be equal; the others are counters, names and pids.
_STATUS = (
    "Umask", "PPid", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
    "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "THP_enabled", "Speculation_Store_Bypass",
)  # fmt: skip
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_LIMITS = {  # as /proc/PID/limits names them; file locks and resident set have no effect in Linux
    "Max cpu time": resource.RLIMIT_CPU,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max data size": resource.RLIMIT_DATA,
    "Max stack size": resource.RLIMIT_STACK,
    "Max core file size": resource.RLIMIT_CORE,
    "Max processes": resource.RLIMIT_NPROC,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max address space": resource.RLIMIT_AS,
    "Max pending signals": resource.RLIMIT_SIGPENDING,
    "Max msgqueue size": resource.RLIMIT_MSGQUEUE,
    "Max nice priority": resource.RLIMIT_NICE,
    "Max realtime priority": resource.RLIMIT_RTPRIO,
    "Max realtime timeout": resource.RLIMIT_RTTIME,
}


@dataclass(frozen=True)
class ThreadPlacement:
    """Where and how a thread may run."""

    cgroups: frozenset[tuple[str, str]]  # (controllers, path), "" for cgroup v2
    affinity: frozenset[int]
    policy: int
    priority: int
    nice: int


@dataclass(frozen=True)
class Surroundings:
    """What a process finds around itself."""

    status: Mapping[str, str]
    limits: Mapping[int, tuple[int, int]]  # RLIMIT_* -> soft, hard
    namespaces: Mapping[str, str]
    environ: tuple[bytes, ...]
    cwd: str
    root: str
    oom_score_adj: int
    coredump_filter: str
    timer_slack_ns: str
    security_label: str
    main: ThreadPlacement
    files: Mapping[str, int]  # what the descriptors refer to, without what is private to a process


def start_ticks(pid: int) -> int:
    """When the process began, in clock ticks since boot; FileNotFoundError when there is none."""
    stat = (PROC / str(pid) / "stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])


def identify(pid: int) -> ProcessId:
    """The process that has this pid now; FileNotFoundError when there is none."""
    return ProcessId(pid, start_ticks(pid))


def alive(process: ProcessId) -> bool:
    """Whether that very process still runs; a zombie does not, unless threads of it have yet to end.

    Those have its files open, and so its disks locked and its ports taken (exit_notify of Linux, kernel/exit.c).
    """
    try:
        fields = _stat(process)
        return fields is not None and (fields[0] not in _ENDED or _has_threads(process))
    except (FileNotFoundError, ProcessLookupError):
        return False


def leaving(process: ProcessId) -> bool:
    """Whether that very process exists, and will not run another instruction of its program.

    SIGKILL is pending, or the thread that it began with has ended or is ending: QEMU's main loop (proc_pid_stat(5),
    state and flags; proc_pid_status(5), SigPnd and ShdPnd).
    """
    try:
        fields = _stat(process)
        if fields is None:
            return False
        if fields[0] in _ENDED:
            return _has_threads(process)
        status = (PROC / str(process.pid) / "status").read_text()
        pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
        return bool(int(fields[6]) & _PF_EXITING) or any(int(mask, 16) & _SIGKILL_BIT for mask in pending)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _stat(process: ProcessId) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None for another process that got its pid."""
    fields = (PROC / str(process.pid) / "stat").read_text().rpartition(")")[2].split()
    return fields if int(fields[19]) == process.start_ticks else None


def _has_threads(process: ProcessId) -> bool:
    return len(os.listdir(PROC / str(process.pid) / "task")) > 1  # noqa: PTH208


def cgroups(path: Path) -> frozenset[tuple[str, str]]:
    """The cgroups named in a /proc/.../cgroup file."""
    rows = (line.split(":", 2) for line in path.read_text().splitlines())
    return frozenset((controllers, where) for _, controllers, where in rows)


def cgroup_folder(controllers: str, where: str) -> Path | None:
    """The folder of a cgroup as this process sees it mounted; None when that hierarchy is not mounted."""
    for line in (PROC / "self" / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mount_point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            matches = controllers == ""
        else:
            wanted = set(controllers.split(","))
            matches = kind == "cgroup" and controllers != "" and wanted <= set(options.split(","))
        if matches:
            inside = where if root == "/" else where.removeprefix(root)
            return Path(mount_point) / inside.lstrip("/")
    return None


def join_cgroups(groups: frozenset[tuple[str, str]], file_v1: str, file_v2: str, number: int) -> None:
    """Put a process (`cgroup.procs`) or a thread (`tasks`, `cgroup.threads`) into each group that is mounted."""
    for controllers, where in sorted(groups):
        folder = cgroup_folder(controllers, where)
        if folder is None:
            continue
        try:
            (folder / (file_v2 if controllers == "" else file_v1)).write_text(str(number))
        except OSError as error:
            raise Failed(f"joining cgroup {folder}", found=str(error)) from error


def placement(pid: int, thread: int) -> ThreadPlacement:
    """How one thread is placed."""
    policy = os.sched_getscheduler(thread)
    return ThreadPlacement(
        cgroups(PROC / str(pid) / "task" / str(thread) / "cgroup"),
        frozenset(os.sched_getaffinity(thread)),
        policy,
        os.sched_getparam(thread).sched_priority,
        os.getpriority(os.PRIO_PROCESS, thread),
    )


def place(thread: int, like: ThreadPlacement) -> None:
    """Place a thread as another one is; to join a cgroup again takes the kernel as long as to join it."""
    join_cgroups(like.cgroups - cgroups(PROC / str(thread) / "cgroup"), "tasks", "cgroup.threads", thread)
    os.sched_setaffinity(thread, like.affinity)
    os.sched_setscheduler(thread, like.policy, os.sched_param(like.priority))
    os.setpriority(os.PRIO_PROCESS, thread, like.nice)


def read(pid: int) -> Surroundings:
    """Everything that a new process must find as this one does."""
    folder = PROC / str(pid)
    rows = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return Surroundings(
        status={name: " ".join(rows[name].split()) for name in _STATUS if name in rows},
        limits=_limits(folder / "limits"),
        namespaces={name: link_target(folder / "ns" / name) for name in _NAMESPACES},
        environ=tuple(sorted(entry for entry in (folder / "environ").read_bytes().split(b"\0") if entry)),
        cwd=link_target(folder / "cwd"),
        root=link_target(folder / "root"),
        oom_score_adj=int((folder / "oom_score_adj").read_text()),
        coredump_filter=(folder / "coredump_filter").read_text().strip(),
        timer_slack_ns=(folder / "timerslack_ns").read_text().strip(),
        security_label=security_label(pid),
        main=placement(pid, pid),
        files=open_files(folder / "fd"),
    )


def security_label(pid: int) -> str:
    """The label that a security module gives the process, "" when none does."""
    try:
        label = (PROC / str(pid) / "attr" / "current").read_bytes().rstrip(b"\0\n").decode(errors="replace")
    except OSError:
        return ""  # EINVAL: no security module uses this file
    return "" if label == "unconfined" else label


def link_target(path: Path) -> str:
    """What a link in /proc names, which need not be a path; "" when it is gone."""
    try:
        return os.readlink(path)  # noqa: PTH115 - Path.readlink refuses "pipe:[1]"-like targets no differently, but is slower
    except FileNotFoundError:
        return ""


def _limits(path: Path) -> Mapping[int, tuple[int, int]]:
    """Read from /proc: prlimit(2) on another user's process wants a privilege that reading does not."""
    found = {}
    for line in path.read_text().splitlines():
        number = _LIMITS.get(line[:26].strip())
        if number is not None:
            soft, hard = (
                resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in line[26:].split()[:2]
            )
            found[number] = (soft, hard)
    return found


def open_files(folder: Path) -> Mapping[str, int]:
    """Descriptors by what they refer to. Left out: sockets, eventfds and other things of one process alone; the pid
    file below /run, which every process has its own of."""
    targets = Counter(link_target(entry) for entry in folder.iterdir())
    return {
        target: count
        for target, count in targets.items()
        if target.startswith("/") and not target.startswith(("/proc/", "/run/")) and " (deleted)" not in target
    }


def differences(old: Surroundings, new: Surroundings, opened: Collection[str] = ()) -> tuple[str, ...]:
    """Each difference as a sentence, but for these, which a handover brings about:

    - SigCgt and SigBlk between QEMU versions are compared, SigQ and the like are not read at all;
    - number of descriptors on the same file: an image is opened once more while it is probed, so only the set of
      files is compared.
    """
    found = [
        f"{name}: expected {getattr(old, name)!r}, found {getattr(new, name)!r}"
        for name in (
            "environ", "cwd", "root", "oom_score_adj", "coredump_filter", "timer_slack_ns",
            "security_label", "main",
        )
        if getattr(old, name) != getattr(new, name)
    ]  # fmt: skip
    for name in ("status", "limits", "namespaces"):
        before, after = getattr(old, name), getattr(new, name)
        found += [
            f"{name} {key}: expected {before.get(key)!r}, found {after.get(key)!r}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
    found += [f"open file: expected {path}, found it closed" for path in sorted(old.files.keys() - new.files.keys())]
    more = new.files.keys() - old.files.keys() - set(opened)
    found += [f"open file: found {path}, expected none" for path in sorted(more)]
    return tuple(found)

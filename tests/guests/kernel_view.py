"""A process as the kernel shows it, entry by entry: read here anew, so that hostagent's own comparison is not trusted.

Everything is text under a name that says where it was read. proc(5) has the meaning of each.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

Entries = dict[str, str]

_FILES = (
    "limits",
    "cgroup",
    "coredump_filter",
    "oom_score_adj",
    "timerslack_ns",
    "attr/current",
    "attr/exec",
    "personality",
    "mountinfo",
    "uid_map",
    "gid_map",
    "setgroups",
    "autogroup",
)
_THREAD_STATUS = re.compile(
    r"Umask|Uid|Gid|Groups|Sig(Blk|Ign|Cgt)|Cap\w+|NoNewPrivs|Seccomp\w*|Specul\w+|(Cpus|Mems)_allowed_list"
)
"""What threads of one process can have each for itself."""
_THREAD_FILES = ("cgroup", "attr/current")
_CPU_SETTINGS = ("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.weight", "cpu.max")
_WORKERS = ("worker",)
"""Threads that come and go with the work there is."""
_EARLY = ("call_rcu", "qemu-system-x86")
"""Names of the thread that begins before QEMU has read its options, among them the one that gives names."""


def read(pid: int) -> Entries:
    """Everything about a process that could be set from outside, or inherited."""
    folder = Path("/proc") / str(pid)
    found: Entries = {}
    found |= _lines("status", folder / "status")
    for name in _FILES:
        found[name] = _text(folder / name)
    for name in ("cwd", "root"):
        found[name] = str((folder / name).readlink())
    for link in (folder / "ns").iterdir():
        found[f"ns/{link.name}"] = str(link.readlink())
    for variable in _text(folder / "environ").split("\0"):
        if variable:
            name, _, value = variable.partition("=")
            found[f"environ {name}"] = value
    found |= _session(folder, pid)
    for kind, count in sorted(Counter(_kinds(folder / "fd")).items()):
        found[f"fd {kind}"] = str(count)
    found["emulator"], _, found["arguments"] = _text(folder / "cmdline").removesuffix("\0").partition("\0")
    found["locks"] = " ".join(sorted(set(_locks(pid))))  # the kernel may show one twice while others come and go
    found |= _threads(folder)
    return found


def differences(old: Entries, new: Entries) -> dict[str, tuple[str | None, str | None]]:
    """Name -> before and after, of every entry that is not the same."""
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError as error:
        return f"error {error.errno}"


def _lines(name: str, path: Path) -> Entries:
    rows = (line.partition(":") for line in _text(path).splitlines())
    return {f"{name} {key}": " ".join(value.split()) for key, _, value in rows}


def _session(folder: Path, pid: int) -> Entries:
    """Numbers of groups and sessions differ for each process: what counts is how they stand to one another."""
    fields = _text(folder / "stat").rpartition(")")[2].split()
    parent, group, session, terminal, terminal_group = (int(word) for word in fields[1:6])
    return {
        "parent": str(parent),
        "leads its group": str(group == pid),
        "leads its session": str(session == pid),
        "group is session's": str(group == session),
        "terminal": f"{terminal} {terminal_group}",
        "signal to parent at exit": fields[35],
    }


def _kinds(folder: Path) -> Iterator[str]:
    """What each descriptor is: the file itself where it has a name, else its kind; with the mode it is open in."""
    others = _pipes_of_others(folder.parent.name)
    for entry in folder.iterdir():
        target = str(entry.readlink())
        info = _text(folder.parent / "fdinfo" / entry.name)
        flags = int(re.search(r"^flags:\s*(\d+)", info, re.MULTILINE)[1], 8)  # type: ignore[index]
        mode = ("r", "w", "rw")[flags & os.O_ACCMODE]
        if target.startswith("socket:"):
            yield f"socket {_socket(folder.parent, target)}"
        elif target.startswith("pipe:"):
            yield f"pipe {mode}, {'to another process' if target in others else 'its own'}"
        else:
            tap = re.search(r"^iff:\s*(\S+)", info, re.MULTILINE)
            yield f"{target} {mode}{f' {tap[1]}' if tap else ''}"


def _pipes_of_others(pid: str) -> set[str]:
    """virtlogd has the other ends of those that a guest's output goes to."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it ended meanwhile
            if entry.parts[2] != pid:
                found.add(str(entry.readlink()))
    return found


def _socket(process: Path, target: str) -> str:
    """Kind, state and path of a Unix socket."""
    inode = target.removeprefix("socket:[").removesuffix("]")
    for line in _text(process / "net/unix").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if fields[6] == inode:
            listens = "listening" if int(fields[3], 16) & 0x10000 else "connected"  # __SO_ACCEPTCON
            return f"{listens} {fields[7] if len(fields) > 7 else '(no path)'}"
    return "of another family"


def _locks(pid: int) -> Iterator[str]:
    """Record locks that belong to the process, by the file's name (those on disks belong to no process)."""
    folder = Path("/proc") / str(pid) / "fd"
    names = {}
    for entry in folder.iterdir():
        found = entry.stat()
        if stat.S_ISREG(found.st_mode):
            names[found.st_ino] = str(entry.readlink())
    for line in _text(Path("/proc/locks")).splitlines():
        fields = line.split()
        if "->" not in fields and fields[4] == str(pid):
            yield f"{fields[1]} {fields[3]} {names.get(int(fields[5].rpartition(':')[2]), '?')} {fields[6]}-{fields[7]}"


def _threads(folder: Path) -> Entries:
    """Each thread by its name; QEMU names them after what they do."""
    found: Entries = {}
    for task in sorted((folder / "task").iterdir(), key=lambda path: int(path.name)):
        name = "main" if task.name == folder.name else _text(task / "comm").strip()
        name = "early" if name in _EARLY else name
        if name in _WORKERS:
            continue
        with suppress(ProcessLookupError):  # a worker that has ended since, or had no name yet
            found |= _thread(task, name)
    return found


def _thread(task: Path, name: str) -> Entries:
    number = int(task.name)
    status = _lines("", task / "status")
    found = {f"thread {name}:{key}": status[key] for key in status if _THREAD_STATUS.fullmatch(key.strip())}
    for file in _THREAD_FILES:
        found[f"thread {name}: {file}"] = _text(task / file)
    found[f"thread {name}: affinity"] = str(sorted(os.sched_getaffinity(number)))
    policy, priority = os.sched_getscheduler(number), os.sched_getparam(number).sched_priority
    found[f"thread {name}: scheduling"] = f"{policy} {priority}"
    found[f"thread {name}: nice"] = str(os.getpriority(os.PRIO_PROCESS, number))
    found[f"thread {name}: CPU time"] = _cpu_time(_text(task / "cgroup"))
    return found


def _cpu_time(cgroups: str) -> str:
    """Share and limit of the group that a thread is in, as the bench mounts it, v1 or v2."""
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "cpu"}:
            group = Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
            settings = [group / name for name in _CPU_SETTINGS if (group / name).exists()]
            if settings:
                return " ".join(f"{setting.name}={_text(setting).strip()}" for setting in settings)
    return "not limited"

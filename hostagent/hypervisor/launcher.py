"""Becomes the new QEMU: a process of its own that takes on the old one's surroundings and then executes it.

Run as `python -m hostagent.hypervisor.launcher`; the order comes as JSON on standard input. Why a process of its own:
entering a mount namespace and giving up privileges cannot be taken back, and must happen in a single-threaded
process. It answers one JSON line with the pid, then waits on a pipe until that pid is in the journal. If hostagent
dies before that, the pipe closes and nothing was started.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hostagent.hypervisor import apparmor, surroundings
from hostagent.hypervisor.descriptors import copy_descriptor
from hostagent.hypervisor.surroundings import PROC, Surroundings

_PR_CAPBSET_DROP = 24  # linux/prctl.h
_CLONE_NEWNS = 0x00020000  # linux/sched.h
_LAST_SIGNAL = signal.NSIG

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Order:
    """A `LaunchOrder` as it crosses the pipe, and the descriptor to wait on."""

    old_pid: int
    argv: list[str]
    listeners: dict[int, tuple[str, str]]
    taken_over: dict[int, int]
    vhosts: list[int]
    pid_file: str
    go: int
    report: int

    @classmethod
    def read(cls, text: str) -> Order:
        raw = json.loads(text)
        return cls(
            int(raw["old_pid"]),
            [str(word) for word in raw["argv"]],
            {int(number): (str(pair[0]), str(pair[1])) for number, pair in raw["listeners"].items()},
            {int(number): int(fd) for number, fd in raw["taken_over"].items()},
            [int(number) for number in raw["vhosts"]],
            str(raw["pid_file"]),
            int(raw["go"]),
            int(raw["report"]),
        )


def main() -> None:
    """Prepare as root, fork, report the pid; the grandchild goes on to become QEMU.

    Two forks, as libvirt does: the new QEMU is init's child, and in a session of its own that it does not lead.
    """
    order = Order.read(sys.stdin.read())
    try:
        old = surroundings.read(order.old_pid)
        descriptors = _descriptors(order)
        namespace = os.open(PROC / str(order.old_pid) / "ns" / "mnt", os.O_RDONLY | os.O_CLOEXEC)
    except Exception as error:
        _report(order.report, error=_told(error))
        return
    if os.fork() == 0:
        os.setsid()
        child = os.fork()
        if child == 0:
            _become(order, old, descriptors, namespace)
        _report(order.report, pid=child)
        os._exit(0)


def _told(error: BaseException) -> str:
    """The error and the line that raised it: there is no traceback to look at."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.line})"


def _report(report: int, **said: object) -> None:
    os.write(report, json.dumps(said).encode() + b"\n")


def _descriptors(order: Order) -> dict[int, int]:
    """Number in the new process -> descriptor here, for everything that the argument list refers to."""
    found = {number: copy_descriptor(order.old_pid, fd) for number, fd in order.taken_over.items()}
    for number in order.vhosts:  # a vhost belongs to the memory of the process that opened it: never shared
        found[number] = os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC)
    for number, (path, like) in order.listeners.items():
        found[number] = _listen(Path(path), Path(like))
    found[0] = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (1, 2):  # a pipe to virtlogd
        found[number] = copy_descriptor(order.old_pid, number)
    return found


def _listen(path: Path, like: Path) -> int:
    """A listening socket with the owner and mode of the one that it will replace.

    The mode is set before it has a name (unix(7)): the folder is QEMU's user's, who could put a link there.
    """
    model = like.lstat()
    if not stat.S_ISSOCK(model.st_mode):
        raise OSError(f"{like} is not a socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    os.fchmod(listener.fileno(), stat.S_IMODE(model.st_mode))
    os.umask(0)
    listener.bind(str(path))
    os.chown(path, model.st_uid, model.st_gid, follow_symlinks=False)
    listener.listen(1)
    return listener.detach()


def _become(order: Order, old: Surroundings, descriptors: dict[int, int], namespace: int) -> NoReturn:
    report = order.report
    try:
        me = os.getpid()
        pid_file = _free_number(descriptors)
        descriptors[pid_file] = _pid_file(Path(order.pid_file), me)
        surroundings.join_cgroups(old.main.cgroups, "cgroup.procs", "cgroup.procs", me)
        (PROC / "self" / "oom_score_adj").write_text(str(old.oom_score_adj))
        (PROC / "self" / "coredump_filter").write_text(f"0x{old.coredump_filter}")
        (PROC / "self" / "timerslack_ns").write_text(old.timer_slack_ns)
        for number, limits in old.limits.items():
            resource.setrlimit(number, limits)
        os.sched_setaffinity(0, old.main.affinity)
        os.sched_setscheduler(0, old.main.policy, os.sched_param(old.main.priority))
        os.setpriority(os.PRIO_PROCESS, 0, old.main.nice)
        os.umask(int(old.status["Umask"], 8))
        _setns(namespace)
        os.chdir(old.cwd)
        for number in range(1, _LAST_SIGNAL):  # Python ignores SIGPIPE and SIGXFSZ; QEMU must not inherit that
            if number not in {signal.SIGKILL, signal.SIGSTOP, 32, 33}:  # 32 and 33 belong to the C library
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.read(order.go, 1) != b"g":
            for path in (order.pid_file, *(path for path, _ in order.listeners.values())):
                Path(path).unlink(missing_ok=True)  # recovery may have looked for them before they were there
            os._exit(1)  # hostagent is gone: nothing was started
        report = _put_in_place(descriptors, report)
        # Only now: a process gives up its lock on a file as soon as it closes any descriptor of it.
        fcntl.lockf(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        _give_up_privileges(old)
        profile = apparmor.profile_of(old.security_label)
        if profile:  # after the user was changed: the kernel goes by who opened the file
            apparmor.exec_label_file().write_text(f"exec {profile}")
        os.execve(order.argv[0], order.argv, dict(entry.split(b"=", 1) for entry in old.environ))  # noqa: S606
    except BaseException as error:  # this is the end of the process: everything must be told
        try:
            _report(report, error=_told(error))
        finally:
            os._exit(1)


def _free_number(descriptors: dict[int, int]) -> int:
    return next(number for number in range(3, len(descriptors) + 4) if number not in descriptors)


def _pid_file(path: Path, pid: int) -> int:
    """A pid file that QEMU keeps open and will have locked, as libvirt leaves it (src/util/vircommand.c)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    os.fchmod(fd, 0o644)
    os.write(fd, f"{pid}\n".encode())
    return fd


def _setns(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "entering the guest's mount namespace")


def _put_in_place(descriptors: dict[int, int], report: int) -> int:
    """Give each descriptor the number that the argument list names; everything else closes when QEMU starts."""
    free = max((*descriptors, *descriptors.values(), report)) + 1
    lifted = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for number, fd in descriptors.items()}
    kept = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, free)
    os.closerange(0, free)
    for number, fd in lifted.items():
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    return kept


def _give_up_privileges(old: Surroundings) -> None:
    bounding = int(old.status["CapBnd"], 16)
    last = int((PROC / "sys" / "kernel" / "cap_last_cap").read_text())
    for capability in range(last + 1):
        if not bounding >> capability & 1:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([int(group) for group in old.status["Groups"].split()])
    os.setresgid(*(int(group) for group in old.status["Gid"].split()[:3]))
    os.setresuid(*(int(user) for user in old.status["Uid"].split()[:3]))


if __name__ == "__main__":
    main()

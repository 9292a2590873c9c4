"""Asking whoever changes this host to stop, as Ctrl-C would, and seeing it end.

Only the very process that has taken the host's lock is ever asked: it is known by its pid and when it began, and held
by a descriptor of its own (pidfd_open(2)), so that nobody who got its pid later is hit.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from hostagent.errors import Failed
from hostagent.hypervisor import ProcessId
from hostagent.hypervisor.surroundings import identify
from hostagent.update.host_lock import Holder, HostLock

POLL_SECONDS = 0.1
_PROC = Path("/proc")

Pause = Callable[[float], None]
Monotonic = Callable[[], float]


def who_is_at_work(lock: HostLock, *, within_seconds: float, pause: Pause, monotonic: Monotonic) -> Holder | None:
    """Who has the lock, None when nobody does; Failed when whoever has it does not say so in time."""
    ends = monotonic() + within_seconds
    while not lock.is_free():
        holder = lock.holder()
        if holder is not None:
            return holder
        if monotonic() >= ends:
            raise Failed(
                "asking who is at work on this host",
                expected=f"a name in {lock.lock.path}",
                found="none, and somebody has the lock",
                hint="hostagent status",
            )
        pause(POLL_SECONDS)
    return None


def ask_to_stop(process: ProcessId) -> bool:
    """Have that process, and no other, end as by Ctrl-C; False when it is gone already."""
    try:
        held = os.pidfd_open(process.pid)
    except (ProcessLookupError, OverflowError):
        return False
    try:
        if identify(process.pid) != process:
            return False
        signal.pidfd_send_signal(held, _heeded(process.pid))
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(held)
    return True


def ended(lock: HostLock, holder: Holder, *, within_seconds: float, pause: Pause, monotonic: Monotonic) -> bool:
    """Wait until it has given the lock up, and its guard too; whether they have."""
    ends = monotonic() + within_seconds
    while not lock.is_free():
        now = lock.holder()
        if now is not None and now != holder and not now.is_guard:
            return True  # somebody else has it by now
        if monotonic() >= ends:
            return False
        pause(POLL_SECONDS)
    return True


def _heeded(pid: int) -> signal.Signals:
    """SIGINT, unless it ignores that: a shell without job control starts what is in the background so."""
    status = (_PROC / str(pid) / "status").read_text()
    ignored = re.search(r"^SigIgn:\s*([0-9a-f]+)$", status, re.MULTILINE)
    ignores = ignored is not None and int(ignored[1], 16) & 1 << (signal.SIGINT - 1)
    return signal.SIGTERM if ignores else signal.SIGINT

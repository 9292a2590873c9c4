"""cancel: who is asked to stop, and who never is; and how long that is waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from called import Caller

from hostagent import wiring
from hostagent.errors import Failed, Refused
from hostagent.hypervisor.surroundings import identify
from hostagent.update.host_lock import GUARDING, HostLock
from hostagent.update.stopping import ask_to_stop, ended, who_is_at_work

SINCE = 1_795_326_000.0

# Whoever changes the host: takes the lock, and ends by the first signal, with its number.
AT_WORK = """
import signal, sys
from pathlib import Path
from hostagent.update.host_lock import HostLock
path, ignored = Path(sys.argv[1]), sys.argv[2:]
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN if number.name in ignored else lambda n, _: got.append(n))
lock = HostLock.at(path)
lock.take("update qemu", 1_795_326_000.0)
print("ready", flush=True)
while not got:
    signal.pause()
sys.stdin.readline()
lock.release()
sys.exit(got[0])
"""


@dataclass
class Worker:
    process: subprocess.Popen[str]

    def let_go(self) -> int:
        """Have it end; its exit code, the number of the first signal that it got."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@contextmanager
def at_work(hostagent: Caller, *ignored: str) -> Iterator[Worker]:
    hostagent.state.mkdir(exist_ok=True)
    words = [sys.executable, "-c", AT_WORK, str(path_of(hostagent)), *ignored]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Worker(process)
        finally:
            process.kill()


def path_of(hostagent: Caller) -> Path:
    return wiring.host_lock_path(hostagent.config())


def test_nothing_is_at_work(hostagent: Caller) -> None:
    result = hostagent("cancel")
    assert (result.exit_code, result.stdout) == (0, "Nothing is at work on this host.\n")
    assert hostagent.json("cancel") == {"at_work": None, "asked": False, "ended": True}
    assert not hostagent.state.exists()


@pytest.mark.parametrize(("ignored", "number"), [((), signal.SIGINT), (("SIGINT",), signal.SIGTERM)])
def test_it_is_asked_as_by_ctrl_c(hostagent: Caller, ignored: tuple[str, ...], number: int) -> None:
    """Or in the other way, where it was started so that Ctrl-C does nothing to it."""
    with at_work(hostagent, *ignored) as worker:
        document = hostagent.json("cancel", "--no-wait")
        assert document == {
            "at_work": {"pid": worker.process.pid, "doing": "update qemu", "since": "2026-11-22T05:40:00.000Z"},
            "asked": True,
            "ended": False,
        }
        assert worker.let_go() == number


def test_asked_twice_it_does_the_same(hostagent: Caller) -> None:
    with at_work(hostagent) as worker:
        for _ in range(3):
            result = hostagent("cancel", "--no-wait")
            assert (result.exit_code, result.stdout.startswith("Asked to stop: 'update qemu' by process ")) == (0, True)
        assert worker.let_go() == signal.SIGINT
    assert hostagent("cancel").stdout == "Nothing is at work on this host.\n"


def test_it_is_waited_for(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_work(hostagent) as worker:
        clock = SimpleNamespace(sleep=lambda _: worker.let_go(), monotonic=lambda: 0.0)
        monkeypatch.setattr("hostagent.cli.cancel.time", clock)
        result = hostagent("cancel")
    assert result.exit_code == 0
    assert result.stdout.endswith("It has ended. What became of it: hostagent status\n")


def test_but_not_for_ever(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.cli.cancel.ENDING_SECONDS", 0.0)
    with at_work(hostagent):
        result = hostagent("cancel")
    assert result.exit_code == 4
    assert "found still at work: 'update qemu' by process" in result.stderr


# -- who is never asked


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Who would end by any of these signals."""
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def named(hostagent: Caller, pid: object, start_ticks: object, doing: str = "update qemu") -> HostLock:
    """The lock is held, and that is who its file names."""
    hostagent.state.mkdir(exist_ok=True)
    lock = HostLock.at(path_of(hostagent))
    lock.take("update qemu", SINCE)
    who = {"pid": pid, "start_ticks": start_ticks, "doing": doing, "since": SINCE}
    path_of(hostagent).write_text(json.dumps(who))
    return lock


def test_somebody_who_got_its_pid_later(hostagent: Caller, bystander: subprocess.Popen[bytes]) -> None:
    lock = named(hostagent, bystander.pid, identify(bystander.pid).start_ticks - 1)
    result = hostagent("cancel", "--no-wait")
    assert (result.exit_code, bystander.poll()) == (0, None)
    assert result.stdout.startswith("The update has died, and its guard sees to it:")
    assert hostagent.json("cancel", "--no-wait")["asked"] is False
    lock.release()


def test_a_guard_that_has_taken_over(hostagent: Caller, bystander: subprocess.Popen[bytes]) -> None:
    lock = named(hostagent, bystander.pid, identify(bystander.pid).start_ticks, GUARDING)
    assert hostagent.json("cancel", "--no-wait")["asked"] is False
    assert bystander.poll() is None
    lock.release()


def test_whoever_had_the_lock_before(hostagent: Caller, bystander: subprocess.Popen[bytes]) -> None:
    """What stands in the file means nothing while nobody has the lock."""
    named(hostagent, bystander.pid, identify(bystander.pid).start_ticks).lock.release()
    assert hostagent("cancel").stdout == "Nothing is at work on this host.\n"
    assert bystander.poll() is None


@pytest.mark.parametrize("pid", [0, -1, 2**70, "x", None])
def test_no_process_at_all(hostagent: Caller, pid: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.cli.cancel.BEGINNING_SECONDS", 0.0)
    lock = named(hostagent, pid, -1)
    assert hostagent("cancel", "--no-wait").exit_code in (0, 4)
    lock.release()


def test_whoever_is_just_beginning_is_waited_for(hostagent: Caller) -> None:
    lock = named(hostagent, 1, 1)
    path_of(hostagent).write_text("")
    now = [0.0]

    def writes_at_last(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 1:
            path_of(hostagent).write_text('{"pid": 7, "start_ticks": 8, "doing": "x", "since": 1}')

    holder = who_is_at_work(lock, within_seconds=5.0, pause=writes_at_last, monotonic=lambda: now[0])
    assert holder is not None
    assert holder.process.pid == 7
    path_of(hostagent).write_text("")
    with pytest.raises(Failed, match="somebody has the lock"):
        who_is_at_work(lock, within_seconds=5.0, pause=lambda s: now.insert(0, now[0] + s), monotonic=lambda: now[0])
    lock.release()


def test_a_process_that_is_gone(bystander: subprocess.Popen[bytes]) -> None:
    was = identify(bystander.pid)
    bystander.kill()
    bystander.wait()
    assert not ask_to_stop(was)


# -- what is waited for


def test_its_guard_is_waited_for_and_nobody_else(hostagent: Caller) -> None:
    lock = named(hostagent, 7, 1)
    holder = lock.holder()
    assert holder is not None
    now = [0.0]

    def waited() -> bool:
        return ended(
            lock, holder, within_seconds=9.0, pause=lambda s: now.insert(0, now[0] + s), monotonic=lambda: now[0]
        )

    assert not waited()
    assert 9 <= now[0] < 10
    path_of(hostagent).write_text(json.dumps({"pid": 8, "start_ticks": 1, "doing": GUARDING, "since": SINCE}))
    assert not waited()
    path_of(hostagent).write_text(json.dumps({"pid": 9, "start_ticks": 1, "doing": "qemu add", "since": SINCE}))
    assert waited()
    lock.release()
    assert waited()


def test_a_lock_that_is_given_up_names_nobody(hostagent: Caller) -> None:
    lock = hostagent.held_by_somebody("update qemu")
    other = HostLock.at(path_of(hostagent))
    with pytest.raises(Refused):
        other.take("another", SINCE)
    other.release()  # it never had it
    holder = lock.holder()
    assert holder is not None
    assert holder.process == identify(os.getpid())
    lock.release()
    assert path_of(hostagent).read_bytes() == b""

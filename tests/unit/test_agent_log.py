"""The service's log: one line for each event, whatever guests are called; and what systemd is told."""

from __future__ import annotations

import json
import logging
import shlex
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.agent.log import VALUE_LIMIT, Level, Log, tell_warnings
from hostagent.agent.notify import Notify
from hostagent.agent_settings import LogFormat

AT = 1_795_326_000.25


def line(format: LogFormat = LogFormat.LOGFMT, *, priorities: bool = False, **told: object) -> str:
    lines: list[str] = []
    Log(lines.append, format, lambda: AT, priorities)("guest ended", **told)  # type: ignore[arg-type]
    (made,) = lines
    return made


def test_logfmt() -> None:
    assert line(guest="web1", update="u1", outcome="updated", pause_ms=18.25, over=False, reason=None) == (
        'at=2026-11-22T05:40:00.250Z level=info event="guest ended" guest=web1 update=u1 outcome=updated '
        "pause_ms=18.25 over=false\n"
    )


def test_guest_and_update_are_on_each_line() -> None:
    assert " guest=- update=- " in line(why="x")
    assert line(guest="-").split(" guest=")[1].startswith('"-" ')


def test_json() -> None:
    told = json.loads(line(LogFormat.JSON, guest="wéb\n1", level=Level.ERROR, count=3))
    assert told == {
        "at": "2026-11-22T05:40:00.250Z",
        "level": "error",
        "event": "guest ended",
        "guest": "wéb\n1",
        "update": "",
        "count": 3,
    }


def test_priorities_for_journald() -> None:
    assert line(priorities=True, level=Level.WARNING).startswith("<4>at=")


@given(st.text())
def test_no_name_breaks_a_line_or_becomes_two_values(name: str) -> None:
    for format in LogFormat:
        made = line(format, guest=name, after=1)
        assert made.count("\n") == 1 and made.isprintable() is False and made[:-1].isprintable()
        assert len(made) < VALUE_LIMIT * 12 + 200
    words = shlex.split(line(guest=name, after=1)[:-1])
    assert [word.split("=")[0] for word in words] == ["at", "level", "event", "guest", "update", "after"]


def test_a_hostile_name_cannot_pretend() -> None:
    made = line(guest='x" event=forged \x1b[31m\\')
    assert 'guest="x\\" event=forged \\x1b[31m\\\\"' in made


def test_what_modules_warn_of_is_in_it_too() -> None:
    lines: list[str] = []
    before = logging.getLogger().handlers[:]
    try:
        tell_warnings(Log(lines.append, wall=lambda: AT))
        logging.getLogger("hostagent.x").info("user 5 asks\nfor %s", "it")
        logging.getLogger("other").info("not of ours")
        try:
            raise ValueError("wrong")
        except ValueError:
            logging.getLogger("other").exception("it broke")
    finally:
        logging.basicConfig(handlers=before, force=True)
        logging.getLogger("hostagent").setLevel(logging.NOTSET)
    assert len(lines) == 2
    assert 'words="user 5 asks\\nfor it"' in lines[0]
    assert "level=error" in lines[1] and "ValueError('wrong')" in lines[1]


@pytest.fixture
def systemd(tmp_path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "notify"))
    made.setblocking(False)
    return made


def test_systemd_is_told(systemd: socket.socket) -> None:
    notify = Notify(systemd.getsockname())
    notify.ready()
    notify.status("two\nlines \x1b")
    notify.alive()
    notify.still_starting(1.5)
    notify.stopping()
    told = [systemd.recv(4096) for _ in range(5)]
    assert told == [b"READY=1", b"STATUS=two lines \\x1b", b"WATCHDOG=1", b"EXTEND_TIMEOUT_USEC=1500000", b"STOPPING=1"]


def test_nobody_is_told_where_nobody_listens(systemd: socket.socket, tmp_path: Path) -> None:
    systemd.close()
    for address in ("", str(tmp_path / "notify"), str(tmp_path / "none"), "@nobody-of-that-name"):
        Notify(address).ready()


def test_a_systemd_that_takes_nothing_is_not_waited_for(systemd: socket.socket) -> None:
    notify = Notify(systemd.getsockname())
    for _ in range(3000):
        notify.alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_ours_alone(environ: dict[str, str], seconds: float | None) -> None:
    assert Notify.of(environ, 7).watchdog_seconds == seconds

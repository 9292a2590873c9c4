"""Progress: what is shown, and that the engine never waits for it."""

import threading
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from hostagent.cli import progress
from hostagent.cli.output import Output
from hostagent.cli.progress import Progress, _LiveTable

NAMES = {"u1": "web1", "u2": "db9"}


class Screen(Output):
    """Keeps what is noted; the first line can be made to hang, as with Ctrl-S."""

    def __init__(self, blocked: threading.Event | None = None) -> None:
        super().__init__(as_json=False)
        self.lines: list[str] = []
        self.blocked = blocked

    def note(self, text: str) -> None:
        if self.blocked is not None:
            self.blocked.wait(10)
        self.lines.append(text)


def shown(tell_all: Callable[[Progress], None]) -> list[str]:
    screen = Screen()
    with Progress(screen, NAMES, stopping=lambda: False) as tell:
        tell_all(tell)
    return screen.lines


def test_guests_by_name_steps_in_words() -> None:
    def run(tell: Progress) -> None:
        tell("r1", "rehearse", "begun")
        tell("r2", "rehearse", "begun")
        tell("r1", "start", "begun")
        tell("u1", "switch", "begun")
        tell("u1", "switch", "undone")
        tell("", "detach", "begun")
        tell("u2", "a new step", "begun")
        tell("u2", "journal", "disk full")

    assert shown(run) == [
        "rehearsal 1: starting a throw-away guest",
        "rehearsal 2: starting a throw-away guest",
        "rehearsal 1: starting the new QEMU",
        "web1: paused: device state crosses",
        "web1: undoing: paused: device state crosses",
        "libvirt: taking libvirt's daemon away; guests run on",
        "db9: a new step",
        "db9: journal: disk full",
    ]


def test_the_engine_does_not_wait_for_a_terminal_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LEAVE_SECONDS", 0.01)
    go_on = threading.Event()
    screen = Screen(go_on)
    with Progress(screen, NAMES, stopping=lambda: False) as tell:
        for _ in range(1000):
            tell("u1", "start", "begun")
    assert screen.lines == []  # not one was written, and still we are here
    go_on.set()


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    class Gone(Screen):
        def note(self, text: str) -> None:
            raise OSError(5, "Input/output error")

    with Progress(Gone(), NAMES, stopping=lambda: False) as tell:
        tell("u1", "start", "begun")
        tell("u1", "switch", "begun")


def test_nothing_is_painted_around_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 100.0)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.001)
    screen = Screen()
    painted = threading.Event()

    def note(text: str) -> None:
        screen.lines.append(text)
        painted.set()

    monkeypatch.setattr(screen, "note", note)
    with Progress(screen, NAMES, stopping=lambda: False) as tell:
        for step in ("reconcile", "switch", "record", "resume"):
            tell("u1", step, "begun")
            assert not painted.wait(0.02)
        tell("u1", "retire", "begun")
        assert painted.wait(10)
    assert len(screen.lines) == 5


def test_a_live_table_has_a_row_for_each_guest_and_for_what_goes_on_beside_them() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    stopping: list[bool] = []
    painter = _LiveTable(console, ["web1", "[b]\x1b"], lambda: bool(stopping))

    def text(*events: tuple[str, str, str]) -> str:
        console.file = StringIO()
        painter.paint([progress.Event(0.0, who, step, words) for who, step, words in events])
        assert isinstance(console.file, StringIO)
        return console.file.getvalue()

    first = text(("rehearsal 1", "start", "starting"))
    assert "rehearsal 1" in first
    assert "[b]\\x1b" in first
    assert first.count("waits for its turn") == 2
    second = text(("libvirt", "detach", "away"), ("web1", "prepare", "noting"))
    assert "rehearsal 1" not in second
    assert "noting" in second
    stopping.append(True)
    third = text(("libvirt", "attach", "back"), ("web1", "look", "checking"))
    assert "libvirt" not in third
    assert "asked to stop" in third
    painter.end()

"""libvirt's daemon, stopped and started: by signal and command, and which of its units under systemd."""

import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hostagent import processes
from hostagent.config import Config, DaemonControl, DaemonSettings
from hostagent.errors import Failed
from hostagent.hypervisor import daemon as daemon_module
from hostagent.hypervisor.daemon import CommandDaemon, SystemdDaemon, reload_others
from hostagent.processes import Completed
from hostagent.update.journal import SqliteJournal
from hostagent.wiring import ports_of

SECONDS = 1.0
MODULAR = ("virtqemud.socket", "virtqemud-ro.socket", "virtqemud-admin.socket", "virtqemud.service")
MONOLITHIC = ("libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service")


@dataclass
class Systemd:
    """systemctl, as far as it is asked: units that it knows, by name, and whether each is enabled."""

    known: dict[str, bool]
    active: set[str] = field(default_factory=set)
    called: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, argv: Sequence[str], *, within_seconds: float, accept: Collection[int] = (0,), **_: Any) -> Completed:
        verb, *words = argv[1:]
        units = [word for word in words if not word.startswith("--")]
        stdout = ""
        if verb == "show":
            stdout = "\n".join(self._shown(unit) for unit in units)
        else:
            assert set(units) <= self.known.keys(), "units that the host does not have"
            self.called.append((verb, *units))
        if verb == "start":
            self.active |= set(units)
        if verb == "stop":
            self.active -= set(units)
        return Completed(tuple(argv), 0, stdout, "")

    def _shown(self, unit: str) -> str:
        """systemctl prints properties in an order of its own, and an empty line between units."""
        loaded = "loaded" if unit in self.known else "not-found"
        enabled = {True: "enabled", False: "disabled", None: ""}[self.known.get(unit)]
        state = "active" if unit in self.active else "inactive"
        return f"Id={unit}\nLoadState={loaded}\nActiveState={state}\nUnitFileState={enabled}\n"

    @property
    def is_up(self) -> bool:
        return any(unit.endswith(".service") for unit in self.active)


class Lock:
    """The lock on driver.pid, which a daemon that runs has."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd

    def holder(self) -> int | None:
        return 1 if self._systemd.is_up else None


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    systemd = Systemd({})
    monkeypatch.setattr(processes, "run", systemd.run)
    return systemd


def daemon(systemd: Systemd) -> SystemdDaemon:
    return SystemdDaemon(Lock(systemd), lambda: True)  # type: ignore[arg-type]


# -- by signal

SLOW = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), exit()))
print(flush=True)
while True:
    signal.pause()
"""


@dataclass
class Held:
    """The lock, and who has it."""

    process: subprocess.Popen[bytes]

    def holder(self) -> int | None:
        return self.process.pid if self.process.poll() is None else None


@pytest.fixture
def slow_to_leave() -> Iterator[Held]:
    """A daemon that takes its time to end."""
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield Held(process)
        process.kill()


def test_a_daemon_is_given_the_time_that_libvirt_takes(slow_to_leave: Held) -> None:
    found = CommandDaemon(slow_to_leave, ["/bin/true"], lambda: True)  # type: ignore[arg-type]
    found.stop(0.01)
    assert not found.is_up()
    found.stop(0.01)


def test_a_daemon_that_does_not_leave_is_left_alone(slow_to_leave: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "LEAVES_SECONDS", 0.05)
    found = CommandDaemon(slow_to_leave, ["/bin/true"], lambda: True)  # type: ignore[arg-type]
    with pytest.raises(Failed, match="it still runs"):
        found.stop(0.01)
    assert found.is_up()


# -- under systemd


@pytest.mark.parametrize("units", [MODULAR, MONOLITHIC], ids=["virtqemud", "libvirtd"])
def test_what_was_active_is_stopped_and_started_again(systemd: Systemd, units: tuple[str, ...]) -> None:
    systemd.known = dict.fromkeys((*units, "virtnetworkd.socket"), True)
    systemd.active = {*units, "virtnetworkd.socket"} - {units[1]}  # somebody stopped one by hand
    was = set(systemd.active)
    found = daemon(systemd)
    found.stop(SECONDS)
    assert systemd.active == {"virtnetworkd.socket"}
    assert systemd.called == [("stop", *(unit for unit in units if unit in was))]  # sockets before the service
    assert not found.is_up()
    found.start(SECONDS)
    assert systemd.active == was
    assert found.restart_hint() == f"systemctl start {units[0]} {units[2]} {units[3]}"


@pytest.mark.parametrize(
    ("known", "started"),
    [
        (dict.fromkeys(MODULAR, True), MODULAR),
        (dict.fromkeys(MONOLITHIC, True), MONOLITHIC),
        (dict.fromkeys(MODULAR, True) | dict.fromkeys(MONOLITHIC, True), MODULAR),
        (dict.fromkeys(MODULAR, False) | dict.fromkeys(MONOLITHIC, True), MONOLITHIC),
        (dict.fromkeys(MODULAR, True) | dict.fromkeys(MONOLITHIC, False), MODULAR),
        ({"virtqemud.service": False}, ("virtqemud.service",)),
        ({"libvirtd.service": False, "virtqemud.service": False}, ("libvirtd.service",)),
    ],
)
def test_who_recovers_starts_what_is_enabled_of_one_daemon(
    systemd: Systemd, known: dict[str, bool], started: tuple[str, ...]
) -> None:
    systemd.known = known
    found = daemon(systemd)
    found.start(SECONDS)
    assert systemd.called == [("reset-failed", *started), ("start", *started)]


def test_nothing_active_is_not_stopped_and_not_forgotten(systemd: Systemd) -> None:
    systemd.known, systemd.active = dict.fromkeys(MODULAR, True), {"virtqemud.service"}
    found = daemon(systemd)
    found.stop(SECONDS)
    found.stop(SECONDS)
    found.start(SECONDS)
    assert systemd.called == [
        ("stop", "virtqemud.service"),
        ("reset-failed", "virtqemud.service"),
        ("start", "virtqemud.service"),
    ]


@pytest.mark.parametrize(
    ("control", "booted", "kind"),
    [
        (DaemonControl.AUTO, True, SystemdDaemon),
        (DaemonControl.AUTO, False, CommandDaemon),
        (DaemonControl.SYSTEMD, False, SystemdDaemon),
        (DaemonControl.COMMAND, True, CommandDaemon),
    ],
)
def test_systemd_is_asked_where_it_is_init(
    monkeypatch: pytest.MonkeyPatch, control: DaemonControl, booted: bool, kind: type
) -> None:
    monkeypatch.setattr("hostagent.config.Path.is_dir", lambda path: booted)
    settings = DaemonSettings(control=control, start=("/usr/sbin/virtqemud", "--daemon"))
    config = Config().model_copy(update={"libvirt": Config().libvirt.model_copy(update={"daemon": settings})})
    journal: SqliteJournal = None  # type: ignore[assignment]  # not looked at
    found = ports_of(config, journal).daemon
    assert type(found) is kind
    if isinstance(found, CommandDaemon):
        assert found.restart_hint() == "/usr/sbin/virtqemud --daemon"


# -- those beside it


@dataclass
class Beside:
    """virtlogd, with pid 7, and virtlockd, which nobody has started; in a made-up /proc."""

    folder: Path
    survives: bool = True
    called: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "proc/7").mkdir(parents=True)
        self.program = self.folder / "virtlogd"
        self.program.touch()
        self.runs(str(self.program))

    def runs(self, exe: str) -> None:
        link = self.folder / "proc/7/exe"
        link.unlink(missing_ok=True)
        if exe:
            link.symlink_to(exe)

    def run(self, argv: Sequence[str], *, within_seconds: float, **_: Any) -> Completed:
        unit = argv[-1]
        if argv[1] == "show":
            return Completed(tuple(argv), 0, "7\n" if unit == "virtlogd.service" else "0\n", "")
        self.called.append(f"{argv[1]} {unit}")
        self.runs(str(self.program) if self.survives else "")
        return Completed(tuple(argv), 0, "", "")


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    beside = Beside(tmp_path)
    monkeypatch.setattr(processes, "run", beside.run)
    monkeypatch.setattr(daemon_module, "_RELOAD_SECONDS", 0.05)
    return beside


def test_those_beside_it_are_reloaded_where_their_files_were_replaced(beside: Beside) -> None:
    reload_others(beside.folder / "proc")
    assert beside.called == []
    beside.runs(f"{beside.program} (deleted)")
    reload_others(beside.folder / "proc")
    assert beside.called == ["reload virtlogd.service"]


def test_one_whose_package_is_gone_runs_on(beside: Beside) -> None:
    beside.runs(f"{beside.program} (deleted)")
    beside.program.unlink()
    reload_others(beside.folder / "proc")
    assert beside.called == []


def test_one_that_ends_by_it_is_said(beside: Beside) -> None:
    beside.survives = False
    beside.runs(f"{beside.program} (deleted)")
    with pytest.raises(Failed, match=r"waiting for virtlogd\.service to run what is installed"):
        reload_others(beside.folder / "proc")

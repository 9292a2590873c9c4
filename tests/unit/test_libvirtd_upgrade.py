"""libvirt's daemon goes to another version, or back: what is put in, in which order, and what is asked of the world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from package_manager import DRIVER, MINE, NEW, OLD, Packages, whole

from hostagent.components.libvirt_packages import LibvirtPackages
from hostagent.errors import Failed, HostagentError, NeedsOperator, Refused
from hostagent.facts import Component, Freshness, GuestState
from hostagent.hypervisor import ProcessId, Standing
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.update.libvirtd_swap import LibvirtdComponent

RECORD = Path(__file__).parent / "records" / "q35.xml"


@dataclass
class World:
    """libvirt's daemon, one guest, and what goes wrong with either."""

    apt: Packages
    records: Path
    up: bool = True
    runs: str = OLD
    broken: set[str] = field(default_factory=set)  # versions that do not start
    forgetful: set[str] = field(default_factory=set)  # versions that lose the guest's record
    job: str = ""
    reload_fails: bool = False
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records.mkdir()
        self.record = RuntimeRecord.parse(RECORD.read_bytes())
        self.path = self.records / f"{self.record.name}.xml"
        self.path.write_bytes(RECORD.read_bytes())
        self.apt.log = self.log
        self.knows = True

    @property
    def installed(self) -> str:
        return self.apt.there[DRIVER].version if DRIVER in self.apt.there else ""

    # -- the daemon

    def is_up(self) -> bool:
        return self.up

    def stop(self, _seconds: float) -> None:
        self.log.append("stop")
        self.up = False

    def start(self, _seconds: float) -> None:
        self.log.append(f"start {self.installed}")
        if self.installed in self.broken:
            raise Failed("waiting for libvirt's daemon", expected="an answer", found="none")
        self.up, self.runs = True, self.installed
        if self.installed in self.forgetful:
            self.path.unlink(missing_ok=True)
        if self.runs == NEW and self.path.exists():
            self.path.write_text("as only the newer one understands it")
        self.knows = self.path.exists() and (self.runs == NEW or self.path.read_bytes() == self.record.data)

    def restart_hint(self) -> str:
        return "systemctl start libvirtd.service"

    # -- libvirt, QEMU, and what is beside the daemon

    def host(self) -> Any:
        return SimpleNamespace(guests=[SimpleNamespace(name="web", job=self.job)])

    def usable(self) -> bool:
        return self.up

    def disconnect(self) -> None:
        """Nothing is open."""

    def settled(self, _uuid: str) -> None:
        """At once."""

    def standing(self, uuid: str) -> Standing | None:
        assert uuid == self.record.uuid
        return Standing(GuestState.RUNNING, "", self.identify(self.record.pid), "") if self.knows else None

    def identify(self, pid: int) -> ProcessId:
        return ProcessId(pid, 1)

    def alive(self, _process: ProcessId) -> bool:
        return True

    def looks(self) -> Component:
        if not self.up:
            raise Failed("asking libvirt", found="no answer")
        fresh = Freshness.CURRENT if self.runs == self.installed else Freshness.OUTDATED
        return Component("libvirtd", self.runs, self.installed, fresh)

    def reload_others(self) -> None:
        self.log.append("reload")
        if self.reload_fails:
            raise Failed("reloading virtlogd.service", found="it ended")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Packages(tmp_path / "workshop"), tmp_path / "run")


def component(world: World, tmp_path: Path, wanted: str = "11.3") -> LibvirtdComponent:
    return LibvirtdComponent(
        libvirt=world,  # type: ignore[arg-type]
        daemon=world,
        qemu=world,  # type: ignore[arg-type]
        records=world.records,
        kept=tmp_path / "state" / "held" / "libvirtd",
        ready_seconds=1.0,
        looks=world.looks,
        packages=LibvirtPackages(world.apt, tmp_path / "state" / "kept" / "libvirt"),
        reload_others=world.reload_others,
        wanted=wanted,
    )


@pytest.fixture
def libvirtd(world: World, tmp_path: Path) -> LibvirtdComponent:
    return component(world, tmp_path)


def leftovers(tmp_path: Path) -> Iterator[Path]:
    return (path for path in (tmp_path / "state").rglob("*") if path.is_file())


# -- what is planned


def test_what_would_run_is_the_version_that_is_wanted(libvirtd: LibvirtdComponent) -> None:
    assert libvirtd.look() == Component("libvirtd", OLD, NEW, Freshness.OUTDATED)


def test_what_is_there_already_is_taken_as_it_is(world: World, libvirtd: LibvirtdComponent) -> None:
    world.apt.there = {name: whole(name, NEW) for name in MINE}
    assert libvirtd.look().freshness is Freshness.OUTDATED
    world.runs = NEW
    assert libvirtd.look().freshness is Freshness.CURRENT


def test_a_daemon_that_nobody_knows_is_no_better_for_a_version(world: World, tmp_path: Path) -> None:
    unknown = component(world, tmp_path)
    object.__setattr__(unknown, "looks", lambda: Component("libvirtd", OLD, "", Freshness.UNKNOWN))
    assert unknown.look().freshness is Freshness.UNKNOWN


def test_without_a_version_nobody_asks_for_packages(world: World, tmp_path: Path) -> None:
    plain = component(world, tmp_path, wanted="")
    world.apt.offers, world.apt.busy = [], "somebody works with packages"
    world.apt.there = {name: whole(name, NEW) for name in MINE}
    assert plain.look().freshness is Freshness.OUTDATED
    plain.stage()
    plain.apply()
    assert plain.is_applied()
    assert world.log == ["stop", f"start {NEW}", "reload"]


# -- forward


def test_packages_first_then_the_daemon_then_those_beside_it(
    world: World, libvirtd: LibvirtdComponent, tmp_path: Path
) -> None:
    libvirtd.stage()
    assert (world.log, libvirtd.is_applied()) == ([], False)
    libvirtd.apply()
    assert world.log == ["install", "stop", f"start {NEW}", "reload"]
    assert libvirtd.is_applied()
    libvirtd.forget()
    assert list(leftovers(tmp_path)) == []


def test_a_job_on_a_guest_and_no_way_back_stop_it_before_it_begins(world: World, libvirtd: LibvirtdComponent) -> None:
    world.job = "a backup"
    with pytest.raises(Failed, match="a backup"):
        libvirtd.stage()
    world.job, world.apt.offers = "", [one for one in world.apt.offers if one.version == NEW]
    with pytest.raises(Refused, match="no way back"):
        libvirtd.stage()
    assert world.log == []


# -- back


def fails(libvirtd: LibvirtdComponent) -> None:
    """As the engine finds that it did not get through."""
    with pytest.raises(HostagentError):
        libvirtd.apply()
        if not libvirtd.is_applied():
            raise Failed("step swap libvirtd", found="none")


@pytest.mark.parametrize("fault", ["broken", "forgetful", "package", "reload"])
def test_the_old_packages_and_every_guest_are_back(
    world: World, libvirtd: LibvirtdComponent, tmp_path: Path, fault: str
) -> None:
    world.broken = {NEW} if fault == "broken" else set()
    world.forgetful = {NEW} if fault == "forgetful" else set()
    world.apt.fails_after = 2 if fault == "package" else None
    world.reload_fails = fault == "reload"
    libvirtd.stage()
    before = dict(world.apt.there)
    fails(libvirtd)
    for _ in range(2):
        libvirtd.roll_back()
        assert (world.up, world.runs, world.knows) == (True, OLD, True)
        assert {name: one for name, one in world.apt.there.items() if name != "mdevctl"} == before
    assert world.log.count("put back") == 1
    libvirtd.forget()
    assert list(leftovers(tmp_path)) == []


@pytest.mark.parametrize("calls", range(5))
def test_another_process_takes_back_whatever_was_done_by_then(world: World, tmp_path: Path, calls: int) -> None:
    """The one that began is gone, and with it what was wanted."""
    began, other = component(world, tmp_path), component(world, tmp_path, wanted="")
    began.stage()
    staged = began.packages.staged()
    assert staged is not None
    steps = (
        lambda: began.packages.install(staged),
        lambda: world.stop(1.0),
        lambda: world.start(1.0),
        world.reload_others,
    )
    for step in steps[:calls]:
        step()
    other.roll_back()
    assert (world.up, world.runs, world.installed, world.knows) == (True, OLD, OLD, True)
    assert ("put back" in world.log) == (calls > 0)


def test_the_old_packages_back_and_the_new_daemon_still_there(world: World, libvirtd: LibvirtdComponent) -> None:
    """A crash came between the two."""
    libvirtd.stage()
    libvirtd.apply()
    staged = libvirtd.packages.staged()
    assert staged is not None
    libvirtd.packages.put_back(staged)
    libvirtd.roll_back()
    assert world.runs == OLD


def test_a_person_is_told_the_commands_when_the_old_packages_do_not_go_back(
    world: World, libvirtd: LibvirtdComponent
) -> None:
    world.broken, world.apt.put_back_fails = {NEW}, True
    libvirtd.stage()
    fails(libvirtd)
    with pytest.raises(NeedsOperator) as caught:
        libvirtd.roll_back()
    hint = str(caught.value.hint)
    assert "SYSTEMD_OFFLINE=1 dpkg --force-depends --remove libvirt-common; SYSTEMD_OFFLINE=1 dpkg --force-" in hint
    assert f"{libvirtd.packages.folder}/old/*.deb" in hint
    assert hint.endswith("systemctl start libvirtd.service; hostagent recover")
    world.apt.put_back_fails = False
    libvirtd.roll_back()
    assert (world.up, world.runs) == (True, OLD)


def test_neither_comes_up(world: World, libvirtd: LibvirtdComponent) -> None:
    world.broken = {NEW, OLD}
    libvirtd.stage()
    fails(libvirtd)
    with pytest.raises(NeedsOperator, match="waiting for libvirt's daemon"):
        libvirtd.roll_back()
    assert libvirtd.packages.are_old(libvirtd.packages.staged())  # type: ignore[arg-type]

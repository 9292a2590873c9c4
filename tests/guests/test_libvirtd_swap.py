"""libvirt's daemon gives way to another build of it, with guests running: none is paused, and it knows all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostagent.update.journal import Outcome, UpdateRecord
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import LIBVIRTD_START, Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests.watched import Look, Watched, leavings

GUESTS = (GuestSpec("one", 1, 256, fill_mib=64), GuestSpec("two", 2, 256, "pc", fill_mib=64))
DAEMON = Path(LIBVIRTD_START[0])
REAL = DAEMON.with_name(f"{DAEMON.name}.real")
READY_SECONDS = 6.0
"""What a daemon may take to answer while one is tried that never does."""

BROKEN = "echo 'libvirtd: symbol lookup error' >&2; exit 127"
FORGETFUL = '[ -e {marker} ] || {{ touch {marker}; rm -f /run/libvirt/qemu/one.xml; }}; exec {real} "$@"'
WRAPPER = '#!/bin/sh\n[ "$1" != --version ] || {{ echo "libvirtd (libvirt) 99.0.0"; exit 0; }}\n{words}\n'


@dataclass(frozen=True)
class Daemon:
    """The daemon's file, as packages would change it."""

    host: Host
    lab: Lab
    guests: tuple[Watched, ...]
    folder: Path

    def replace(self, words: str = "") -> None:
        """By another build of the same, or by a script."""
        new = DAEMON.with_name("new")
        if words:
            text = words.format(marker=self.folder / "marker", real=REAL)
            new.write_text(WRAPPER.format(words=text))
            new.chmod(0o755)
        else:
            shutil.copy(REAL, new)
        new.rename(DAEMON)

    @property
    def impatient(self) -> Lab:
        daemon = self.lab.config.libvirt.daemon.model_copy(update={"ready_seconds": READY_SECONDS})
        libvirt = self.lab.config.libvirt.model_copy(update={"daemon": daemon})
        return Lab(self.lab.config.model_copy(update={"libvirt": libvirt}))

    def update(self) -> UpdateRecord:
        return self.lab.swap("libvirtd")

    def look(self) -> dict[str, Look]:
        self.host.disconnect()
        return {guest.spec.name: guest.look() for guest in self.guests}

    def check(self, before: dict[str, Look]) -> None:
        """They ran on, and libvirt has them as they were."""
        for guest in self.guests:
            guest.check_that_it_ran_on(before[guest.spec.name])


@pytest.fixture(scope="module")
def daemon(host: Host, peer: Peer, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    DAEMON.rename(REAL)
    shutil.copy(REAL, DAEMON)
    host.restart_libvirtd()
    guests = tuple(Watched(host, peer, spec) for spec in GUESTS)
    try:
        with host.guest(GUESTS[0]), host.guest(GUESTS[1]):
            for guest in guests:
                guest.proof.wait_booted()
            yield Daemon(host, lab, guests, tmp_path_factory.mktemp("daemon"))
    finally:
        REAL.rename(DAEMON)
        host.restart_libvirtd()


@pytest.fixture
def before(daemon: Daemon) -> dict[str, Look]:
    for guest in daemon.guests:
        guest.forget_gaps()
    return daemon.look()


def test_another_build_takes_over(daemon: Daemon, before: dict[str, Look]) -> None:
    files = leavings()
    daemon.replace()
    record = daemon.update()
    assert (record.outcome, record.reason) == (Outcome.UPDATED, "")
    daemon.check(before)
    assert leavings() == files
    assert daemon.lab.components()["libvirtd"].freshness == "current"


def test_one_that_loses_a_guest_gets_it_back(daemon: Daemon, before: dict[str, Look]) -> None:
    """Its record is put back, and it is started once more."""
    daemon.replace(FORGETFUL)
    record = daemon.update()
    assert record.outcome is Outcome.ROLLED_BACK
    assert (daemon.folder / "marker").exists()
    daemon.check(before)


def test_one_that_does_not_start_waits_for_a_person(daemon: Daemon, before: dict[str, Look]) -> None:
    """The guests run; once a daemon starts again that does, recovery closes the update."""
    daemon.replace(BROKEN)
    record = daemon.impatient.swap("libvirtd")
    assert record.is_open
    (found,) = [update for update in daemon.impatient.recover() if update.id == record.id]
    assert found.is_open
    daemon.replace()
    daemon.host.start_libvirtd()
    (found,) = [update for update in daemon.lab.recover() if update.id == record.id]
    assert found.outcome is Outcome.ROLLED_BACK
    daemon.check(before)

"""Something of the host is swapped for which no guest may run: all are held together, small and large, and come back.

A component of the host's owner, whose commands look for QEMUs themselves.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hostagent.config import ComponentSettings
from hostagent.libvirt_files.hook import HOOK
from hostagent.plan import Technique
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.report import report_of
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.crash.dying_swap import BARRIER, COMMITTED, DROP_IN, FLAG, SETTINGS
from tests.crash.real_updater import When
from tests.crash.real_world import LIMIT, guards
from tests.guests.watched import Look, Watched, is_of

SMALL = GuestSpec("small", 1, 512, vcpus=2, fill_mib=300, seed=41)
LARGE = GuestSpec("large", 2, 4096, "pc", fill_mib=1500, seed=42)
FINENESS_SECONDS = 0.1
"""How finely a guest's ticks tell what it felt, on a busy machine."""
FOLDER = Path("/var/lib/firmware")
NO_QEMU = "! pgrep -x qemu-system-x86 >/dev/null || { echo 'a guest runs' >&2; exit 1; }\n"
SCRIPTS = {
    "apply": NO_QEMU + "[ ! -e {folder}/broken ] || { echo 'does not load' >&2; exit 1; }; echo new >{folder}/build",
    "verify": "grep -q new {folder}/build",
    "roll_back": NO_QEMU + "echo old >{folder}/build",
}


@dataclass(frozen=True)
class Trip:
    """Both guests, held once."""

    record: UpdateRecord
    before: dict[str, Look]
    after: dict[str, Look]
    by_journal: dict[str, tuple[float, float]]

    def pause(self, spec: GuestSpec) -> float:
        return float(str(self.record.guests[spec.uuid].measured["pause_seconds"]))

    def felt(self, spec: GuestSpec) -> float:
        return self.after[spec.name].felt.stood_still_ns / 1e9

    def from_pause_to_look(self, spec: GuestSpec) -> float:
        """From the step that paused it to the one after that in which it went on."""
        begun = {step: at for guest, step, at in self.record.step_times if guest == spec.uuid}
        return begun["look"] - begun["pause"]

    def is_as_felt(self, spec: GuestSpec) -> bool:
        """It stopped and went on within the steps that the journal has of that, and no later than was measured."""
        least, most = self.by_journal[spec.name]
        pause, felt = self.pause(spec), self.felt(spec)
        return least - FINENESS_SECONDS <= felt <= pause + FINENESS_SECONDS and least <= pause <= most


@dataclass(frozen=True)
class Firmware:
    """What is swapped, and the guests of the host."""

    lab: Lab
    guests: tuple[Watched, Watched]

    @property
    def build(self) -> str:
        return (FOLDER / "build").read_text().strip()

    def reset(self, *, breaks: bool = False) -> None:
        (FOLDER / "build").write_text("old\n")
        (FOLDER / "broken").unlink(missing_ok=True)
        if breaks:
            (FOLDER / "broken").touch()

    def trip(self, *, alone: bool = False) -> Trip:
        for guest in self.guests:
            guest.forget_gaps()
        before = {guest.spec.name: guest.look() for guest in self.guests}
        lab = self.lab
        record = lab.update(lab.newer, technique=Technique.HOLD) if alone else lab.swap("firmware")
        for guest in self.guests:
            guest.wait_for_ticks()
        trip = Trip(
            record,
            before,
            {guest.spec.name: guest.look() for guest in self.guests},
            {guest.spec.name: lab.stood_still(record, guest.spec.uuid) for guest in self.guests},
        )
        for guest in self.guests:
            felt = trip.after[guest.spec.name].felt.stood_still_ns / 1e6
            (report,) = (one for one in report_of(record).guests if one.name == guest.spec.name)
            print(f"{record.order['component']}: {guest.spec.name} felt {felt:.0f} ms, steps {dict(report.phases)}")
        return trip


@pytest.fixture(scope="module")
def firmware(host: Host, peer: Peer, lab: Lab) -> Iterator[Firmware]:
    FOLDER.mkdir()
    for name, words in SCRIPTS.items():
        (FOLDER / name).write_text("#!/bin/sh\n" + words.replace("{folder}", str(FOLDER)) + "\n")
        (FOLDER / name).chmod(0o755)
    settings = ComponentSettings.model_validate(
        {"name": "firmware", **{name: [str(FOLDER / name)] for name in SCRIPTS}}
    )
    with_it = Lab(lab.config.model_copy(update={"component": (settings,)}))
    with_it.install_hook()
    host.restart_libvirtd()
    guests = Watched(host, peer, SMALL), Watched(host, peer, LARGE)
    try:
        with host.guest(SMALL), host.guest(LARGE):
            for guest in guests:
                guest.proof.wait_booted()
            yield Firmware(with_it, guests)
    finally:
        shutil.rmtree(FOLDER)
        shutil.rmtree(HOOK.parent)
        host.restart_libvirtd()


def nothing_was_lost(firmware: Firmware, trip: Trip) -> None:
    for guest in firmware.guests:
        checked, before = guest.proof.check(), trip.before[guest.spec.name]
        assert checked.ram.pages == guest.spec.fill_mib * 256
        assert checked.good
        assert before.report is not None
        assert checked.boot_id == before.report.boot_id
        assert trip.after[guest.spec.name].ram == before.ram
    assert not list((firmware.lab.config.paths.state / "held").glob("*"))


Metrics = dict[tuple[object, ...], float]


def told() -> Metrics:
    """What `hostagent metrics` says now, of every update of this host."""
    said = subprocess.run(
        [sys.executable, "-m", "hostagent.cli", "metrics"], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert said.stderr == ""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(said.stdout)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def told_before(firmware: Firmware) -> Metrics:
    """What was said before the first swap: other tests were on this host."""
    return told()


@pytest.fixture(scope="module")
def swapped(firmware: Firmware, told_before: Metrics) -> Trip:
    """The first swap of this host."""
    firmware.reset()
    trip = firmware.trip()
    assert firmware.build == "new"
    return trip


def test_it_is_swapped_with_all_guests_held(firmware: Firmware, swapped: Trip) -> None:
    assert {guest.outcome for guest in swapped.record.guests.values()} == {Outcome.UPDATED}, swapped.record
    assert swapped.record.outcome is Outcome.UPDATED
    nothing_was_lost(firmware, swapped)
    for guest in firmware.guests:
        assert swapped.is_as_felt(guest.spec), (swapped.felt(guest.spec), swapped.pause(guest.spec), swapped.by_journal)


def test_the_metrics_are_what_the_guests_felt(firmware: Firmware, swapped: Trip, told_before: Metrics) -> None:
    metrics = told()

    def more(name: str, *labels: tuple[str, str]) -> float:
        return metrics[name, *labels] - told_before.get((name, *labels), 0)

    both = [guest.spec for guest in firmware.guests]
    for spec in both:
        whose = ("guest", spec.name)
        pause = metrics["hostagent_guest_last_pause_seconds", whose, ("method", "in-place")]
        assert pause == swapped.pause(spec)
        assert ("hostagent_guest_paused_since_timestamp_seconds", whose) not in metrics
    of_swaps = (("component", "firmware"), ("method", "in-place"), ("technique", "hold"))
    assert more("hostagent_guest_pause_seconds_count", *of_swaps) == len(both)
    pauses = sum(swapped.pause(spec) for spec in both)
    assert more("hostagent_guest_pause_seconds_sum", *of_swaps) == pytest.approx(pauses)
    phases = [("phase", phase) for phase in ("pause", "save", "swap", "restore", "resume")]
    assert [more("hostagent_pause_phase_seconds_count", phase) for phase in phases] == [len(both)] * len(phases)
    in_phases = sum(more("hostagent_pause_phase_seconds_sum", phase) for phase in phases)
    least, most = sum(swapped.felt(spec) for spec in both), sum(swapped.from_pause_to_look(spec) for spec in both)
    assert least - FINENESS_SECONDS * len(both) <= in_phases <= most + FINENESS_SECONDS
    assert metrics["hostagent_update_state", ("state", "idle")] == 1
    assert metrics["hostagent_guests", ("state", "running")] == len(both)
    assert metrics["hostagent_guests_outdated", ("component", "qemu")] == 0


def test_one_that_does_not_load_is_rolled_back_and_all_come_back(firmware: Firmware) -> None:
    firmware.reset(breaks=True)
    trip = firmware.trip()
    assert {guest.outcome for guest in trip.record.guests.values()} == {Outcome.ROLLED_BACK}, trip.record
    assert (trip.record.outcome, firmware.build) == (Outcome.ROLLED_BACK, "old")
    assert "does not load" in trip.record.reason
    nothing_was_lost(firmware, trip)


def test_the_pause_hardly_depends_on_how_much_ram_there_is(firmware: Firmware) -> None:
    """Each held for itself, onto the other QEMU. The ratio is told, not judged."""
    trip = firmware.trip(alone=True)
    assert {guest.outcome for guest in trip.record.guests.values()} == {Outcome.UPDATED}, trip.record
    assert all(is_of(look.exe, firmware.lab.newer.emulator) for look in trip.after.values())
    small, large = trip.pause(SMALL), trip.pause(LARGE)
    print(f"\nhold, pause(4 GiB) / pause(512 MiB): {large:.3f} s / {small:.3f} s = {large / small:.2f}")
    nothing_was_lost(firmware, trip)


@pytest.fixture(scope="module")
def flag() -> Iterator[Path]:
    """What is swapped by an updater that dies."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(SETTINGS)
    yield FLAG
    FLAG.unlink(missing_ok=True)
    DROP_IN.unlink()
    DROP_IN.parent.rmdir()


@pytest.mark.parametrize(("step", "when"), BARRIER)
def test_the_updater_dies_at_the_barrier(firmware: Firmware, flag: Path, step: str, when: When) -> None:
    """All guests are back by its guard alone, on one side of the barrier; what is swapped is on the same side."""
    flag.unlink(missing_ok=True)
    before = {guest.spec.name: guest.look() for guest in firmware.guests}
    died = subprocess.run([sys.executable, "-m", "tests.crash.dying_swap", step, when], check=False)
    assert died.returncode == -9
    _, at_work = psutil.wait_procs(guards(), LIMIT)
    assert not at_work, "expected the guard to be done"
    record = firmware.lab.updates()[-1]
    forward = (step, when) == COMMITTED
    expected = Outcome.UPDATED if forward else Outcome.ROLLED_BACK
    assert {guest.outcome for guest in record.guests.values()} == {expected}, record
    assert flag.exists() is forward
    after = {guest.spec.name: guest.look() for guest in firmware.guests}
    nothing_was_lost(firmware, Trip(record, before, after, {}))

"""The ways in which a guest can be brought onto another QEMU, or through a change of its host, ready to be gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.raw import BOOT_LIMIT, RawGuest
from hostagent.facts import QemuTree
from hostagent.plan import Method, Technique
from hostagent.update.journal import Outcome, UpdateRecord
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import RAM
from tests.bench.lab import STOPS, Lab
from tests.bench.link import SIDES
from tests.bench.peer import Peer
from tests.bench.proof import Proof
from tests.bench.two_hosts import TwoHosts
from tests.hosts.guests import LIVE, Travelling

MACHINE = "pc-q35-7.2"  # which both QEMUs have
BUDGET_SECONDS = 120.0
ON_DISK = Path("/var/lib/libvirt/qemu/save")


@dataclass(frozen=True)
class Told:
    """What whoever moves a guest says: how long it stood still, and what each step from the one that stops it took."""

    seconds: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Stage:
    """Two hosts, hostagent on the first, and who hears the guests: what all ways share."""

    hosts: TwoHosts
    peer: Peer
    lab: Lab
    moves: dict[str, int] = field(default_factory=dict)  # of each guest

    def other(self, spec: GuestSpec) -> QemuTree:
        """The QEMU that it does not run on: it goes up and back."""
        moved = self.moves[spec.name] = self.moves.get(spec.name, 0) + 1
        return (self.lab.system, self.lab.newer)[moved % 2]

    def proof(self, spec: GuestSpec) -> Proof:
        return Proof(self.hosts.a.connection.lookupByUUIDString(spec.uuid))

    def native(self, spec: GuestSpec) -> str:
        """How libvirt would start it: without libvirt it has the same devices, whose state is most of what is sent."""
        return str(self.hosts.a.connection.domainXMLToNative("qemu-argv", self.hosts.a.xml(spec)))

    def updated(self, spec: GuestSpec, to: QemuTree, **more: object) -> Told:
        """By hostagent; what it says of it."""
        return told(self.lab.update(to, [spec.name], budget_seconds=BUDGET_SECONDS, **more), spec)  # type: ignore[arg-type]


def told(update: UpdateRecord, spec: GuestSpec) -> Told:
    """AssertionError when it was not updated."""
    record = update.guests[spec.uuid]
    assert record.outcome is Outcome.UPDATED, record.reason
    begun = [(step, at) for guest, step, at in update.step_times if guest == spec.uuid]
    first = next((index for index, (step, _) in enumerate(begun) if step in STOPS), len(begun))
    phases = {step: later - at for (step, at), (_, later) in pairwise(begun[first:])}
    seconds = record.measured.get("pause_seconds")
    return Told(seconds if isinstance(seconds, float) else None, phases)


@dataclass(frozen=True)
class Way:
    """One of them: what it is called, who goes, and how; that says for how long he stood still, if it can."""

    method: str
    spec: GuestSpec
    go: Callable[[], Told | None]
    ready: Callable[[], object] = lambda: None  # beforehand; nobody measures that
    clock_stops: bool = True  # the pause is what the guest's clock lost; else it is the silence, as of one that boots


def kept(stage: Stage, spec: GuestSpec) -> Iterator[Way]:
    """By hostagent, with the guest's RAM kept."""

    def by(technique: Technique) -> Told:
        return stage.updated(spec, stage.other(spec), technique=technique)

    yield Way("handover_kept", spec, lambda: by(Technique.HANDOVER))
    yield Way("hold", spec, lambda: by(Technique.HOLD))


def copied(stage: Stage, spec: GuestSpec) -> Way:
    """By hostagent; the guest's ordinary RAM is copied. It is booted anew each time: RAM is copied once."""

    def boots() -> None:
        stage.hosts.a.remove_guest(spec)
        stage.hosts.a.boot(spec)
        stage.proof(spec).wait_booted(BOOT_LIMIT)

    return Way("handover_copied", spec, lambda: stage.updated(spec, stage.lab.newer), boots)


def rebooted(stage: Stage, spec: GuestSpec) -> Way:
    """By hostagent: shut down, and started on the other QEMU, until its agent answers."""

    def reboot() -> None:
        stage.updated(spec, stage.other(spec), methods=[Method.REBOOT])
        stage.proof(spec).wait_booted(BOOT_LIMIT)

    return Way("reboot", spec, reboot, clock_stops=False)


def saved(stage: Stage, spec: GuestSpec) -> Iterator[Way]:
    """By libvirt: saved with its RAM, and restored."""

    def through(path: Path) -> None:
        connection = stage.hosts.a.connection
        connection.lookupByUUIDString(spec.uuid).save(str(path))
        connection.restore(str(path))
        path.unlink()

    def managed() -> None:
        domain = stage.hosts.a.connection.lookupByUUIDString(spec.uuid)
        domain.managedSave()
        domain.create()

    yield Way("save_restore", spec, lambda: through(RAM / "saved"))
    yield Way("save_restore_disk", spec, lambda: through(ON_DISK / "saved"))
    yield Way("managed_save", spec, managed)


def migrated(stage: Stage, spec: GuestSpec) -> Way:
    """By libvirt, from one host to the other, without encryption."""
    guest = Travelling(stage.hosts, spec)

    def crosses() -> None:
        (here,) = guest.runs_on()
        (there,) = (side for side in SIDES if side is not here)
        guest.migrate(here, there, LIVE)

    return Way("live_migration", spec, crosses)


def alone(stage: Stage, guest: RawGuest) -> Iterator[Way]:
    """By QEMU, without libvirt: what nobody can be faster than."""
    spec = guest.spec
    yield Way("limit", spec, lambda: Told(guest.hand_over(stage.other(spec).emulator)))
    yield Way("raw_hold", spec, lambda: Told(guest.save_and_load(stage.other(spec).emulator)))


def by_cpr(stage: Stage, guest: RawGuest) -> Way:
    """By QEMU, without libvirt, with what the newer one has for it; to another process of the same version."""
    return Way("cpr_transfer", guest.spec, lambda: Told(guest.hand_over_by_cpr(stage.lab.newer.emulator)))

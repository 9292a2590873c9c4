"""Two guests through four handovers, of which two are undone; everything is looked at before and after each."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

from hostagent.hypervisor import descriptors
from hostagent.update.journal import GuestRecord, Outcome, UpdateRecord
from tests.bench.lab import Lab
from tests.bench.peer import Felt
from tests.bench.proof import ProofReport
from tests.guests import kernel_view
from tests.guests.kernel_view import Entries
from tests.guests.watched import Watched

IDLE_TICKS = 200


@dataclass(frozen=True)
class Tap:
    """What a guest's network card has on the host."""

    name: str
    header_length: int
    offloads: int


@dataclass(frozen=True)
class View:
    """A guest's process by the kernel, its placement by libvirt, its tap."""

    pid: int
    entries: Entries
    placement: dict[str, object]
    tap: Tap


@dataclass(frozen=True)
class Crossing:
    """One guest in one of the handovers."""

    guest: Watched
    undone: bool
    record: GuestRecord
    before: View
    after: View
    idle: Felt
    felt: Felt
    by_journal: tuple[float, float]
    """For how long it stood still at least, and at most, if it did."""
    report: ProofReport
    """Once it had ended; by `checked` each of the guest's loops has gone round."""
    checked: ProofReport


class _Cancel:
    """Asks to stop while this step is the last that was begun; it is heeded before the next one.

    for_good: go on asking, so that guests that come later do not even begin.
    """

    def __init__(self, step: str, *, for_good: bool) -> None:
        self.step, self.for_good, self.asking = step, for_good, False

    def tell(self, key: str, step: str, doing: str) -> None:
        self.asking = (step, doing) == (self.step, "begun") or (self.for_good and self.asking)

    def cancelled(self) -> bool:
        return self.asking


def _undone_after(step: str, *, for_good: bool) -> Callable[[Lab], UpdateRecord]:
    def update(lab: Lab) -> UpdateRecord:
        cancel = _Cancel(step, for_good=for_good)
        return lab.update(lab.system, tell=cancel.tell, cancelled=cancel.cancelled)

    return update


UPDATES: dict[str, Callable[[Lab], UpdateRecord]] = {
    "up": lambda lab: lab.update(lab.newer),
    "undone-beside": _undone_after("detach", for_good=True),  # both new QEMUs wait, libvirtd is away
    "undone-loaded": _undone_after("switch", for_good=False),  # the state has crossed, of one after the other
    "back": lambda lab: lab.update(lab.system),
}


def make(way: str, lab: Lab, pair: tuple[Watched, ...]) -> list[Crossing]:
    """Take both guests through it."""
    for guest in pair:
        guest.forget_gaps()
    for guest in pair:
        guest.peer.wait_for_ticks(guest.spec.address, count=IDLE_TICKS)
    idle = [guest.felt() for guest in pair]
    before = [view_of(guest) for guest in pair]
    for guest in pair:
        guest.forget_gaps()
    update, undone = UPDATES[way](lab), way.startswith("undone")
    for record in update.guests.values():  # else the next one would not begin where it is meant to
        assert record.outcome is (Outcome.ROLLED_BACK if undone else Outcome.UPDATED), record.reason
    reports = [guest.proof.report() for guest in pair]
    for guest, report in zip(pair, reports, strict=True):
        guest.wait_for_ticks()
        guest.goes_on(report)
    return [
        Crossing(
            guest=guest,
            undone=undone,
            record=update.guests[guest.spec.uuid],
            before=before[at],
            after=view_of(guest),
            idle=idle[at],
            felt=guest.felt(),
            by_journal=(0.0, 0.0) if way == "undone-beside" else lab.stood_still(update, guest.spec.uuid),
            report=reports[at],
            checked=guest.proof.check(),
        )
        for at, guest in enumerate(pair)
    ]


def view_of(guest: Watched) -> View:
    domain, pid = guest.domain, guest.pid
    placement = {
        "scheduler": domain.schedulerParameters(),
        "vCPUs": domain.vcpuPinInfo(),
        "emulator": domain.emulatorPinInfo(),
        "I/O threads": [(number, cpus) for number, cpus, *_ in domain.ioThreadInfo()],
        "memory": domain.memoryParameters(),
    }
    target = ElementTree.fromstring(domain.XMLDesc()).find("devices/interface/target")
    assert target is not None
    return View(pid, kernel_view.read(pid), placement, tap_of(pid, target.get("dev", "")))


def tap_of(pid: int, name: str) -> Tap:
    """As the guest's QEMU holds it open."""
    for fd in sorted(int(number) for number in os.listdir(f"/proc/{pid}/fd")):  # noqa: PTH208
        try:
            tap = descriptors.copy_descriptor(pid, fd)
        except OSError:
            continue  # closed meanwhile
        try:
            if descriptors.tap_name(tap) == name:
                return Tap(name, descriptors.tap_header_length(tap), descriptors.tap_offloads(tap))
        except OSError:
            continue  # not a tap
        finally:
            os.close(tap)
    raise AssertionError(f"QEMU {pid} does not hold {name}")

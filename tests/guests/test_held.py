"""Guests are held: saved without their RAM, nothing of them runs, and back on another QEMU. 7.2 -> 10.0 -> 7.2.

With libvirt's daemon there all the time, its hook, and what it refuses meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import libvirt
import pytest

from hostagent import wiring
from hostagent.facts import QemuTree
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.libvirt_files.held_definition import NAMESPACE
from hostagent.libvirt_files.hook import HOOK
from hostagent.plan import Technique
from hostagent.policy import PolicyPart
from hostagent.policy_xml import read_policy
from hostagent.update import holding
from hostagent.update.guest_hold import GuestHold
from hostagent.update.journal import Outcome, UpdateRecord
from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.bench.proof import ProofReport
from tests.guests.plugged import plug_memory
from tests.guests.watched import Look, Watched, is_of

GUESTS = (
    GuestSpec("held", 1, 512, vcpus=2, numa_nodes=2, memory_slots=1, fill_mib=300, seed=31),
    GuestSpec("held & on pc", 2, 256, "pc", fill_mib=100, seed=32),
    GuestSpec("spice", 3, 512, vcpus=2, fill_mib=200, seed=33, screen="qxl", display="spice"),
)
LEGS = ("up", "back")
FINENESS_SECONDS = 0.1
"""How finely a guest's ticks tell what it felt, on a busy machine."""
OWN = PolicyPart(budget_seconds=8.0, priority=5, availability_set="db", never_together=frozenset(("held & on pc",)))


@dataclass
class Refusals:
    """Somebody tries to start guests while they are held; what he is told."""

    host: Host
    said: dict[str, str] = field(default_factory=dict)

    def tell(self, key: str, step: str, doing: str) -> None:
        if step == "restore" and doing == "begun" and key in {spec.uuid for spec in GUESTS}:  # no rehearsal's
            domain = self.host.connection.lookupByUUIDString(key)
            with pytest.raises(libvirt.libvirtError) as refused:
                domain.create()
            self.said[domain.name()] = str(refused.value)


@dataclass(frozen=True)
class Leg:
    """One guest's way in one direction."""

    spec: GuestSpec
    to: QemuTree
    record: UpdateRecord
    before: Look
    after: Look
    checked: ProofReport
    by_journal: tuple[float, float]
    """For how long it stood still at least, and at most."""
    refused: str

    @property
    def measured(self) -> dict[str, object]:
        return dict(self.record.guests[self.spec.uuid].measured)


@pytest.fixture(scope="module")
def hook(host: Host, lab: Lab) -> Iterator[None]:
    lab.install_hook()
    host.restart_libvirtd()
    try:
        yield
    finally:
        shutil.rmtree(HOOK.parent)
        host.restart_libvirtd()


@pytest.fixture(scope="module")
def legs(hook: None, host: Host, peer: Peer, lab: Lab) -> Iterator[dict[tuple[str, str], Leg]]:
    guests = [Watched(host, peer, spec) for spec in GUESTS]
    with host.guest(GUESTS[0]), host.guest(GUESTS[1]), host.guest(GUESTS[2]):
        for guest in guests:
            guest.proof.wait_booted()
            if guest.spec.memory_slots:
                plug_memory(guest, 128, node=0)
                guest.proof.fill(guest.spec.fill_mib, guest.spec.seed)
        put_policy(lab, GUESTS[0])
        made = {}
        for way, to, technique in zip(LEGS, (lab.newer, lab.system), (Technique.HOLD, None), strict=True):
            made |= {(way, leg.spec.name): leg for leg in there(lab, host, guests, to, technique)}
        yield made


def put_policy(lab: Lab, spec: GuestSpec) -> None:
    api = wiring.libvirt_of(lab.config)
    try:
        api.put_policy(spec.uuid, OWN)
    finally:
        api.disconnect()


def there(lab: Lab, host: Host, guests: list[Watched], to: QemuTree, technique: Technique | None) -> Iterator[Leg]:
    """On the way back whatever the plan takes: a handover where that is possible."""
    for guest in guests:
        guest.forget_gaps()
    before, refusals = [guest.look() for guest in guests], Refusals(host)
    rehearsing = lab.config.update.model_copy(update={"rehearse": True})
    record = Lab(lab.config.model_copy(update={"update": rehearsing})).update(
        to, technique=technique, tell=refusals.tell
    )
    for guest, look in zip(guests, before, strict=True):
        outcome, reason = record.guests[guest.spec.uuid].outcome, record.guests[guest.spec.uuid].reason
        assert outcome is Outcome.UPDATED, reason
        guest.wait_for_ticks()
        leg = Leg(
            guest.spec,
            to,
            record,
            look,
            guest.look(),
            guest.proof.check(),
            lab.stood_still(record, guest.spec.uuid),
            refusals.said.get(guest.spec.name, ""),
        )
        print(
            f"{guest.spec.name:14} to {to.version}: {leg.measured.get('pause_seconds')} s by the report, felt"
            f" {leg.after.felt.stood_still_ns / 1e6:.0f} ms"
        )
        yield leg


@pytest.fixture(params=[(way, spec.name) for way in LEGS for spec in GUESTS], ids="-".join)
def leg(legs: dict[tuple[str, str], Leg], request: pytest.FixtureRequest) -> Leg:
    return legs[request.param]


def held(leg: Leg) -> bool:
    """Whether it went by a hold: on the way back only the one that cannot be handed over."""
    return bool(leg.refused)


def test_it_went_as_planned(leg: Leg) -> None:
    assert held(leg) is (leg.to.name != "system" or leg.spec.display == "spice")


def test_nothing_of_it_was_lost(leg: Leg) -> None:
    assert leg.checked.ram.pages == leg.spec.fill_mib * 256
    assert leg.checked.good
    assert leg.before.report is not None
    assert leg.checked.boot_id == leg.before.report.boot_id
    assert leg.after.ram == leg.before.ram
    assert is_of(leg.after.exe, leg.to.emulator)


def test_the_pause_is_as_it_was_felt(leg: Leg) -> None:
    """Measured from outside it, a hold's is a little longer than what the guest feels, never shorter."""
    reported = float(str(leg.measured["pause_seconds"]))
    felt, (least, most) = leg.after.felt.stood_still_ns / 1e9, leg.by_journal
    assert least - FINENESS_SECONDS <= felt <= most + FINENESS_SECONDS
    assert least <= reported <= most
    if held(leg):
        assert felt <= reported + FINENESS_SECONDS


def test_its_clock_is_right(leg: Leg) -> None:
    assert leg.measured["clock_outcome"] in {"in-sync", "corrected"}, leg.measured


def test_libvirt_sees_it_as_it_was(leg: Leg) -> None:
    assert leg.measured["xml_differences"] == []
    assert leg.after.persistent_xml == leg.before.persistent_xml
    assert NAMESPACE not in leg.after.live_xml


def test_its_own_policy_went_with_it(leg: Leg) -> None:
    """By a hold, and by a handover on the way back."""
    own = OWN if leg.spec is GUESTS[0] else PolicyPart()
    for xml in (leg.after.live_xml, leg.after.persistent_xml):
        assert read_policy(leg.spec.name, read_definition(xml).policy) == own


def test_another_start_was_refused_with_what_to_do(leg: Leg) -> None:
    if held(leg):
        assert "it is held by hostagent (update lab-" in leg.refused
        assert "hostagent recover" in leg.refused


def test_nothing_is_left(legs: dict[tuple[str, str], Leg], lab: Lab) -> None:
    assert not list((lab.config.paths.state / "held").glob("*"))
    assert not list(lab.config.paths.held.glob("*"))


def test_one_that_was_handed_over_is_held_as_any_other(
    hook: None, host: Host, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QEMU's monitor was not made by libvirt; it is ended before libvirt does that, too."""
    spec, asked = GuestSpec("handed over", 4, 256), list[str]()

    def asks(hold: GuestHold, image: bytes, waits: Callable[[], bool]) -> None:
        asked.append(hold.name)
        end_saved(hold, image, waits)

    end_saved = holding._end_saved
    monkeypatch.setattr(holding, "_end_saved", asks)
    with host.guest(spec):
        for to, technique in ((lab.newer, Technique.HANDOVER), (lab.system, Technique.HOLD)):
            record = lab.update(to, [spec.name], technique=technique)
            assert record.guests[spec.uuid].outcome is Outcome.UPDATED, record.guests[spec.uuid].reason
        assert asked == [spec.name]

"""Guests that are rebooted onto another QEMU, for real: by their agents, by ACPI, or not at all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import psutil
import pytest

from hostagent import boot, wiring
from hostagent.config import RebootSettings
from hostagent.facts import QemuTree
from hostagent.hypervisor.domain_xml import read_definition
from hostagent.plan import Method
from hostagent.policy import PolicyPart
from hostagent.update.journal import GuestRecord, Outcome
from tests.bench.guest_spec import LISTENS_AT, GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.bench.proof import ProofReport
from tests.crash.real_updater import End, How, Order, When
from tests.crash.real_world import LIMIT, Updater, guards
from tests.guests.watched import Look, Watched, is_of, journal_is_closed

AGENT = GuestSpec("with an agent", 1, 256, fill_mib=64, seed=41)
DEAF = GuestSpec("deaf", 2, 256, fill_mib=64, seed=42)
AGENTLESS = GuestSpec("agentless", 3, 256, agent=False)
SPECS = (AGENT, DEAF, AGENTLESS)
SHUTDOWN_SECONDS = 60.0
BOOT_SECONDS = 300.0
REBOOT = (Method.REBOOT,)


@dataclass
class Scene:
    """The guests, and the lab that reboots them."""

    host: Host
    lab: Lab
    guests: dict[str, Watched]

    def lab_with(self, **settings: object) -> Lab:
        reboot = RebootSettings.model_validate(
            {"shutdown_seconds": SHUTDOWN_SECONDS, "boot_seconds": BOOT_SECONDS} | settings
        )
        return Lab(self.lab.config.model_copy(update={"reboot": reboot}))


@dataclass(frozen=True)
class Rebooted:
    """What an update of all of them came to."""

    records: dict[str, GuestRecord]
    before: dict[str, Look]
    after: dict[str, Look]
    checked: dict[str, ProofReport]
    ticks: int  # of the one that nobody can ask


@pytest.fixture(scope="module")
def scene(host: Host, peer: Peer, lab: Lab) -> Iterator[Scene]:
    guests = {spec.name: Watched(host, peer, spec) for spec in SPECS}
    with host.guest(AGENT), host.guest(DEAF), host.guest(AGENTLESS):
        for spec in (AGENT, DEAF):
            guests[spec.name].proof.wait_booted()
        made = Scene(host, lab, guests)
        put_policy(lab, AGENTLESS, PolicyPart(boot_tcp=AGENTLESS.tcp))
        make_deaf(guests[DEAF.name])
        assert boot.answers(AGENTLESS.address, LISTENS_AT, BOOT_SECONDS)
        yield made


def put_policy(lab: Lab, spec: GuestSpec, own: PolicyPart) -> None:
    api = wiring.libvirt_of(lab.config)
    try:
        api.put_policy(spec.uuid, own)
    finally:
        api.disconnect()


def make_deaf(guest: Watched) -> None:
    """Until its next boot: neither what its agent runs nor what its power button runs is there."""
    guest.proof.run_in_guest("/bin/rm", "/sbin/shutdown", "/etc/acpi/PWRF/00000080")


def look(guest: Watched) -> Look:
    """The one without an agent is not asked."""
    return guest.look() if guest.spec.agent else guest.look_from_outside()


@pytest.fixture(scope="module")
def rebooted(scene: Scene) -> Rebooted:
    before = {name: look(guest) for name, guest in scene.guests.items()}
    scene.guests[AGENTLESS.name].forget_gaps()
    update = scene.lab_with().update(scene.lab.newer, methods=REBOOT)
    assert journal_is_closed(scene.lab)
    checked = {}
    for spec in (AGENT, DEAF):
        scene.guests[spec.name].proof.wait_booted()
        checked[spec.name] = scene.guests[spec.name].proof.check()
    after = {name: look(guest) for name, guest in scene.guests.items()}
    records = {record.name: record for record in update.guests.values()}
    for record in records.values():
        print(f"{record.name}: {record.outcome} {dict(record.measured)} {record.reason}")
    return Rebooted(records, before, after, checked, scene.guests[AGENTLESS.name].felt().ticks)


@pytest.mark.parametrize("spec", [AGENT, AGENTLESS], ids=lambda spec: spec.name)
def test_it_runs_on_the_new_qemu(rebooted: Rebooted, lab: Lab, spec: GuestSpec) -> None:
    record, before, after = rebooted.records[spec.name], rebooted.before[spec.name], rebooted.after[spec.name]
    assert (record.outcome, record.reason) == (Outcome.UPDATED, "")
    assert is_of(after.exe, lab.newer.emulator)
    assert after.qemus != before.qemus
    assert after.state[0] == libvirt.VIR_DOMAIN_RUNNING
    assert read_definition(after.live_xml).emulator == lab.newer.emulator


@pytest.mark.parametrize("spec", [AGENT, AGENTLESS], ids=lambda spec: spec.name)
def test_its_definition_stays_as_it_was(rebooted: Rebooted, lab: Lab, spec: GuestSpec) -> None:
    assert rebooted.after[spec.name].persistent_xml == rebooted.before[spec.name].persistent_xml
    assert read_definition(rebooted.after[spec.name].persistent_xml).emulator == lab.system.emulator


def test_it_has_booted_and_goes_on_with_its_disk(rebooted: Rebooted) -> None:
    before, checked = rebooted.before[AGENT.name].report, rebooted.checked[AGENT.name]
    assert before is not None
    assert checked.boot_id != before.boot_id
    assert checked.boot_id != rebooted.records[AGENT.name].notes["boot_id"] == before.boot_id
    assert checked.good
    assert checked.disk.last > before.disk.last


def test_one_that_has_no_agent_was_asked_by_acpi_and_proved_by_its_port(rebooted: Rebooted) -> None:
    notes = rebooted.records[AGENTLESS.name].notes
    assert (notes["agent"], notes["boot_tcp"]) == (False, AGENTLESS.tcp)
    assert rebooted.ticks > 0


@pytest.mark.parametrize("spec", [AGENT, AGENTLESS], ids=lambda spec: spec.name)
def test_what_it_took_is_measured_and_no_pause(rebooted: Rebooted, spec: GuestSpec) -> None:
    measured = rebooted.records[spec.name].measured
    assert float(str(measured["down_seconds"])) > 0
    assert float(str(measured["boot_seconds"])) > 0
    assert "pause_seconds" not in measured


def test_its_clock_is_right(rebooted: Rebooted) -> None:
    """It boots by its RTC, which counts seconds: it may be up to one of them ahead, and is not set back."""
    measured = rebooted.records[AGENT.name].measured
    a_little_ahead = measured.get("clock_reason") == "ahead" and float(str(measured["clock_after_seconds"])) < 1.0
    assert measured["clock_outcome"] in {"in-sync", "corrected"} or a_little_ahead


def test_one_that_does_not_heed_the_request_still_runs(rebooted: Rebooted) -> None:
    record, before, after = rebooted.records[DEAF.name], rebooted.before[DEAF.name], rebooted.after[DEAF.name]
    assert record.outcome is Outcome.ROLLED_BACK
    assert f"expected it to shut itself down within {SHUTDOWN_SECONDS:g} s, found that it runs on" in record.reason
    assert f"should it do so later, virsh start {DEAF.uuid}" in record.reason
    assert (after.qemus, after.live_xml, after.state) == (before.qemus, before.live_xml, before.state)
    assert before.report is not None
    assert rebooted.checked[DEAF.name].boot_id == before.report.boot_id
    assert rebooted.checked[DEAF.name].good


def test_it_is_ended_only_where_the_settings_say_so(rebooted: Rebooted, scene: Scene) -> None:
    guest = scene.guests[DEAF.name]
    before = guest.proof.report()
    update = scene.lab_with(shutdown_seconds=2.0, force=True).update(scene.lab.newer, [DEAF.name], methods=REBOOT)
    (record,) = update.guests.values()
    assert (record.outcome, record.reason, record.notes["forced"]) == (Outcome.UPDATED, "", True)
    guest.proof.wait_booted()
    after = guest.proof.check()
    assert after.boot_id != before.boot_id
    assert after.good
    assert after.disk.last > before.disk.last


# -- the updater is killed ------------------------------------------------------------------------------------------


def killed(scene: Scene, to: QemuTree, end: End) -> None:
    """An update of the guest with an agent whose updater dies there; returns when its guard, if any, is done."""
    updater = Updater(Order(to=to.name, guests=(AGENT.name,), methods=REBOOT, end=end))
    assert updater.wait(2 * LIMIT) == -signal.SIGKILL
    _, alive = psutil.wait_procs(guards(), 2 * LIMIT)
    assert not alive


def last(scene: Scene) -> GuestRecord:
    (record,) = scene.lab.updates()[-1].guests.values()
    return record


def tree_of(scene: Scene) -> QemuTree:
    exe = str(Path(f"/proc/{scene.guests[AGENT.name].pid}/exe").readlink())
    return next(tree for tree in (scene.lab.system, scene.lab.newer) if is_of(exe, tree.emulator))


@pytest.mark.parametrize(
    ("end", "forward"),
    [
        (End(step="start", when=When.BEFORE, how=How.KILL), False),
        (End(step="start", when=When.AFTER, how=How.KILL_GUARD_TOO), False),
        (End(step="boot", when=When.AFTER, how=How.KILL), True),
        (End(step="shut-down", when=When.AFTER, how=How.KILL_GUARD_TOO), False),
    ],
    ids=str,
)
def test_killed_it_runs_in_the_end(rebooted: Rebooted, scene: Scene, end: End, forward: bool) -> None:
    """Its guard sees to that, or whoever recovers."""
    guest, was = scene.guests[AGENT.name], tree_of(scene)
    boot_id = guest.proof.wait_booted().boot_id
    killed(scene, scene.lab.system if was == scene.lab.newer else scene.lab.newer, end)
    if end.how is How.KILL_GUARD_TOO:
        assert not journal_is_closed(scene.lab)
        assert bool(guest.qemus()) is (end.step == "shut-down")
        scene.lab.recover()
    assert journal_is_closed(scene.lab)
    assert last(scene).outcome is (Outcome.UPDATED if forward else Outcome.ROLLED_BACK), last(scene).reason
    assert (tree_of(scene) == was) is not forward
    after = guest.proof.wait_booted()
    assert (after.boot_id == boot_id) is (end.step == "shut-down")
    assert guest.proof.check().good

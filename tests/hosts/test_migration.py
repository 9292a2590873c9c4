"""hostagent has guests migrate between two real hosts: there, and back onto a new QEMU, and whatever disturbs that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import libvirt
import pytest

from hostagent.peer_settings import Transport
from hostagent.plan import GuestPlan, Method, Plan, Verdict
from hostagent.update import host as host_update
from hostagent.update.journal import Outcome, UpdateRecord
from hostagent.update.report import GuestReport, report_of
from tests.bench.lab import Lab
from tests.bench.link import A, B, Traffic
from tests.bench.peer import Peer
from tests.bench.two_hosts import URIS, TwoHosts
from tests.crash.real_updater import End, How, Order, When
from tests.crash.real_world import Updater, guards, wait_for
from tests.hosts.guests import TRAVELLER, Standing, Travelling, is_well
from tests.hosts.peers import Putting

SLOW = 200_000_000
"""Bits a second: its RAM takes some seconds."""
CRAWL = 8_000_000


def goes(lab: Lab, **more: object) -> GuestReport:
    """What `hostagent update qemu --method live-migrate` makes of the guest."""
    update = lab.update(lab.newer, [TRAVELLER.name], methods=[Method.LIVE_MIGRATE], **more)  # type: ignore[arg-type]
    return told(update)


def leaves(lab: Lab, *, disks: tuple[str, ...] = ()) -> GuestReport:
    """An update that has the guest go to the peer, and stay there whatever runs there; `disks` are copied."""
    with lab._changing("leaving", lambda *_: None) as ports:
        host = ports.libvirt.host()
        (found,) = [one for one in host.guests if one.name == TRAVELLER.name]
        plan = Plan(
            "qemu",
            lab.system,
            (
                GuestPlan(
                    *(found.name, found.uuid, Verdict.UPDATE, Method.LIVE_MIGRATE, None, found.qemu, (), 10.0),
                    peer="host-b",
                    copied_disks=disks,
                ),
            ),
            (),
        )
        return told(
            host_update.update_qemu(
                *(ports, host, plan),
                update_id=f"leave-{time.monotonic_ns()}",
                tell=lambda *_: None,
                cancelled=lambda: False,
            )
        )


def told(update: UpdateRecord) -> GuestReport:
    (report,) = report_of(update).guests
    return report


def last(lab: Lab) -> GuestReport:
    return told(lab.updates()[-1])


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", [Transport.TLS, Transport.PLAIN])
def test_it_goes_and_comes_back_onto_the_new_qemu(
    hosts: TwoHosts, standing: Standing, peer: Peer, put: Putting, transport: Transport
) -> None:
    lab, heard = put(transport), list[str]()
    with standing.guest(TRAVELLER) as travelling:
        connected = peer.connections(TRAVELLER.address)
        with travelling.on(A) as domain:
            domain.setAutostart(1)
            defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        with travelling.proof(A) as proof:
            was = proof.report()
        peer.reset(TRAVELLER.address)
        report = goes(lab, tell=lambda _key, step, doing: heard.append(f"{step} {doing}"))
        print(report.outcome, report.reason)
        assert (report.outcome, report.reason, report.runs_on) == (Outcome.UPDATED, "", "")
        assert report.qemu_after == str(lab.newer.version)
        time.sleep(1.5)
        is_well(travelling, A, emulator=lab.newer.emulator)
        with travelling.proof(A) as proof:
            now = proof.report()
        assert (now.boot_id, peer.connections(TRAVELLER.address)) == (was.boot_id, connected)
        with travelling.on(A) as domain:
            assert domain.autostart()
            assert domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == defined
        there, back = lab.updates()[-1].guests[TRAVELLER.uuid].measured["pauses"]
        assert report.pause_seconds == max(there, back)
        # On a busy machine few ticks lie between the two, so that the largest step may hold both; and a packet's way.
        felt = peer.felt(TRAVELLER.address).stood_still_ns / 1e9
        print(f"stood still {felt:.3f} s by the guest's clock, {there:.3f} s and {back:.3f} s by ours")
        assert felt <= there + back + 0.1
        assert any("GiB to host-b" in line for line in heard)
        assert any("GiB to this host" in line for line in heard)


def test_it_goes_and_stays(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    lab = put(returns=False)
    with standing.guest(TRAVELLER) as travelling:
        with travelling.on(A) as domain:
            domain.setAutostart(1)
        report = leaves(lab)
        print(report.outcome, report.reason)
        assert (report.outcome, report.reason, report.runs_on) == (Outcome.UPDATED, "", "host-b")
        is_well(travelling, B, emulator=lab.system.emulator)
        with travelling.on(B) as domain:
            assert domain.autostart()


# -- it does not get away ---------------------------------------------------------------------------------------------


def stays(lab: Lab, travelling: Travelling, report: GuestReport, why: str) -> None:
    assert report.outcome is Outcome.ROLLED_BACK, report
    assert why in report.reason
    is_well(travelling, A, emulator=lab.system.emulator)


def test_a_guest_that_writes_too_fast_is_given_up(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    lab = put(least=6.0)
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)  # its memory as it is would cross in about half of that
        with travelling.proof(A) as proof:
            proof.rewrite(2 * TRAVELLER.fill_mib)
        report = goes(lab)
        print(report.reason)
        with travelling.proof(A) as proof:
            proof.rewrite(0)
        stays(lab, travelling, report, "expected it to arrive within 6 s")
        assert "the guest writes" in report.reason


@contextmanager
def once(reached: object, act: object) -> Iterator[None]:
    """Beside what the block does, as soon as that is so."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not reached():  # type: ignore[operator]
            time.sleep(0.005)
        if not over.is_set():
            act()  # type: ignore[operator]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def under_way(travelling: Travelling) -> object:
    return lambda: travelling.moved_bytes() > 16 << 20


def at_the_end(travelling: Travelling) -> Callable[[], bool]:
    return lambda: travelling.state(A) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)


@pytest.mark.parametrize("what", [Traffic.ALL, Traffic.ANSWERS, Traffic.MIGRATION], ids=lambda what: what.name)
def test_the_network_is_cut_as_its_memory_crosses(
    hosts: TwoHosts, standing: Standing, put: Putting, what: Traffic
) -> None:
    lab = put(least=6.0 if what is Traffic.MIGRATION else 15.0, end=2.0, call=2.0)  # libvirt misses nothing
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)
        with once(under_way(travelling), lambda: hosts.link.cut(what)):
            report = goes(lab)
        print(report.outcome, report.reason)
        assert travelling.runs_on() == [A]
        assert report.outcome is Outcome.ROLLED_BACK
        hosts.link.mend()
        if travelling.is_known_on(B):
            assert "could not be asked whether a copy" in report.reason
            wait_for(lambda: not travelling.is_known_on(B), "the other host to end what came in")
        stays(lab, travelling, report, "migrating to host-b")


def test_the_answer_that_it_has_arrived_is_lost(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    """It runs on here; the copy that stands still there goes once the peer can be asked."""
    lab = put(end=25.0, call=3.0)
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(4 * SLOW)

        def cut() -> None:
            hosts.link.cut(Traffic.ANSWERS)
            travelling.wait_until(lambda: not at_the_end(travelling)())
            time.sleep(2)  # in which the peer is asked in vain
            hosts.link.mend()

        with once(at_the_end(travelling), cut):
            report = goes(lab)
        print(report.outcome, report.reason)
        if report.outcome is Outcome.UPDATED:  # it was too late
            pytest.skip("it had left before")
        stays(lab, travelling, report, "migrating to host-b")


def test_the_peer_loses_its_power(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    lab = put(end=2.0, call=2.0)
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)
        with once(under_way(travelling), hosts.b.kill):
            report = goes(lab)
        print(report.reason)
        assert report.outcome is Outcome.ROLLED_BACK
        assert travelling.state(A) in [(libvirt.VIR_DOMAIN_RUNNING, why) for why in range(12)]
        hosts.mend()
        is_well(travelling, A, emulator=lab.system.emulator)


# -- it does not come back --------------------------------------------------------------------------------------------


def comes_in(travelling: Travelling) -> object:
    """It is on its way back."""
    return lambda: travelling.runs_on() == [B] and travelling.is_known_on(A)


def test_a_guest_that_cannot_come_back_stays_there_and_it_is_said(
    hosts: TwoHosts, standing: Standing, put: Putting
) -> None:
    lab = put(least=8.0)
    with standing.guest(TRAVELLER) as travelling:
        with once(lambda: travelling.runs_on() == [B], lambda: hosts.link.slow(CRAWL)):
            report = goes(lab)
        print(report.outcome, report.reason)
        assert (report.outcome, report.runs_on) == (Outcome.UPDATED, "host-b")
        assert "it runs on host-b, and stays there" in report.reason
        assert "expected it to arrive within 8 s" in report.reason
        assert report.qemu_after == str(lab.system.version)
        is_well(travelling, B, emulator=lab.system.emulator)


def test_the_network_is_cut_on_the_way_back(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    """Nobody can say where it is until the peer answers again; then it is found, and stays there or has come back."""
    lab = put(end=2.0, call=2.0)
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(4 * SLOW)
        with once(comes_in(travelling), hosts.link.cut):
            report = goes(lab)
        print(report.outcome, report.reason)
        assert report.outcome is Outcome.NEEDS_OPERATOR
        assert f"virsh -c {URIS[B]} domstate --reason {TRAVELLER.uuid}" in report.reason
        assert travelling.runs_on() == [B]
        hosts.link.mend()
        lab.recover()
        report = last(lab)
        print(report.outcome, report.reason)
        assert (report.outcome, report.runs_on) == (Outcome.UPDATED, "")
        is_well(travelling, A, emulator=lab.newer.emulator)


# -- the updater dies -------------------------------------------------------------------------------------------------

STEPS = ("prepare", "migrate", "resume", "look", "return", "resume-at-home", "look-at-home")


@pytest.mark.parametrize(
    ("step", "how"),
    [*((step, How.KILL) for step in STEPS), *((step, How.KILL_GUARD_TOO) for step in ("migrate", "resume", "return"))],
)
def test_the_updater_is_killed(hosts: TwoHosts, standing: Standing, put: Putting, step: str, how: How) -> None:
    lab = put()
    when = When.AFTER if how is How.KILL else When.BEFORE
    with standing.guest(TRAVELLER) as travelling:
        order = Order(
            to=lab.newer.name,
            guests=(TRAVELLER.name,),
            methods=(Method.LIVE_MIGRATE,),
            end=End(step=step, when=when, how=how),
        )
        updater = Updater(order)
        assert updater.wait(120.0) == -signal.SIGKILL
        wait_for(lambda: not guards(), "its guard to be done")
        if how is How.KILL_GUARD_TOO:
            lab.recover()
        report = last(lab)
        print(report.outcome, report.reason)
        stayed = step in ("prepare", "migrate")
        assert report.outcome is (Outcome.ROLLED_BACK if stayed else Outcome.UPDATED)
        assert report.runs_on == (None if stayed else "")
        is_well(travelling, A, emulator=(lab.system if stayed else lab.newer).emulator)
        hosts.a.disconnect()


def test_the_updater_is_killed_as_its_memory_crosses(hosts: TwoHosts, standing: Standing, put: Putting) -> None:
    """libvirt goes on by itself: its guard breaks that off."""
    lab = put()
    with standing.guest(TRAVELLER) as travelling:
        hosts.link.slow(SLOW)
        updater = Updater(Order(to=lab.newer.name, guests=(TRAVELLER.name,), methods=(Method.LIVE_MIGRATE,)))
        with once(under_way(travelling), lambda: os.kill(updater.pid, signal.SIGKILL)):
            assert updater.wait(120.0) == -signal.SIGKILL
            wait_for(lambda: not guards(), "its guard to be done")
        report = last(lab)
        assert report.outcome is Outcome.ROLLED_BACK
        assert "cut off" in report.reason
        is_well(travelling, A, emulator=lab.system.emulator)

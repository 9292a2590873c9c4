"""The service in the bench: it sees what becomes of guests and of libvirt, heals, and its death hurts nobody."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hostagent import wiring
from hostagent.update.journal import Outcome
from hostagent.update.order import UpdateOrder
from tests.agent.agent_process import LIMIT, AgentProcess
from tests.bench.guest_spec import GuestSpec
from tests.bench.lab import CONFIG
from tests.crash.real_updater import End, How, Order, When
from tests.crash.real_world import World, wait_for, world

pytestmark = pytest.mark.skipif("HOSTAGENT_BENCH" not in os.environ, reason="runs inside the bench")

FIGURES: list[str] = []
FINENESS_SECONDS = 0.1
"""How finely a guest's ticks tell what it felt, on a busy machine."""
AGENT = '\n[agent]\nlog_format = "json"\nlook_seconds = 2\nlisten = "127.0.0.1:9177"\n'


@pytest.fixture(scope="module")
def there(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(GuestSpec(fill_mib=64)) as made:
        CONFIG.write_text(CONFIG.read_text() + AGENT)
        yield made
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    for line in FIGURES:
        reporter.write_line(f"\n{line}", flush=True)


def update_words(there: World) -> tuple[str, ...]:
    there.guest.forget_gaps()
    return ("update", "qemu", "--to", there.other_tree.name, "--yes", "--json")


def test_sees_guests_and_libvirt_and_ends_at_once(there: World, tmp_path: Path) -> None:
    name = there.guest.spec.name
    held = there.lab.config.paths.held
    with AgentProcess(tmp_path) as agent:
        agent.wait_line("libvirt answers")
        agent.wait_told("WATCHDOG=1")
        agent.wait_told("STATUS=watching")
        there.guest.domain.suspend()
        agent.wait_line("guest event", guest=name, what="paused")
        there.guest.domain.resume()
        agent.wait_line("guest event", guest=name, what="resumed")

        files = agent.process().num_fds()
        there.host.disconnect()
        there.host.stop_libvirtd()
        agent.wait_line("libvirt is away")
        agent.wait_told("STATUS=libvirt is away")
        there.host.start_libvirtd()
        wait_for(lambda: agent.told.count("STATUS=watching") > 1, "libvirt to be back")

        held.mkdir(parents=True, exist_ok=True)
        (held / f"{name}.held").touch()
        try:
            domain = there.guest.domain
            there.host.connection.defineXML(domain.XMLDesc(2))  # VIR_DOMAIN_XML_INACTIVE
            assert agent.wait_line("held guest touched", guest=name)["what"] == "defined"
        finally:
            (held / f"{name}.held").unlink()
        wait_for(lambda: agent.process().num_fds() <= files, "no more open files than before")
        seconds = agent.stop()
    FIGURES.append(f"agent: ended {seconds * 1000:.0f} ms after SIGTERM")
    assert "STOPPING=1" in agent.told
    there.check()


@pytest.mark.parametrize(("step", "how"), [("prepare", "killed"), ("switch", "killed"), ("resume", "stopped")])
def test_its_end_does_not_touch_the_update_that_it_runs(there: World, tmp_path: Path, step: str, how: str) -> None:
    to, begun = there.other_tree, len(there.lab.updates())
    with AgentProcess(tmp_path, update=update_words(there), halts_at=step) as agent:
        agent.start_update()
        updater = halted(there, after=begun)
        if how == "killed":
            agent.kill()
        else:
            agent.stop()
            assert agent.wait_line("stopping")["goes_on"] == "hostagent update"
        updater.resume()
    with AgentProcess(tmp_path) as agent:
        line = says_what_became_of_it(there, agent, begun)
        assert line["outcome"] == Outcome.UPDATED, line
        agent.stop()
    there.wait_unguarded()
    there.check(on=to)
    felt, (_, most) = (
        there.guest.felt_ms() / 1000,
        there.lab.stood_still(there.lab.updates()[begun], there.guest.spec.uuid),
    )
    FIGURES.append(f"agent {how} as {step} began: guest stood still for {felt * 1000:.1f} ms")
    assert felt < most + FINENESS_SECONDS


def test_heals_what_nobody_sees_to(there: World, tmp_path: Path) -> None:
    """The updater dies while the guest stands still, and its guard with it."""
    before = there.guest.tree()
    there.guest.forget_gaps()
    there.cut_off(End(step="record", when=When.AFTER, how=How.KILL_GUARD_TOO))
    (update,) = there.open_updates()
    with AgentProcess(tmp_path) as agent:
        agent.wait_line("update is open", update=update.id)
        agent.wait_line("recovered", update=update.id)
        assert agent.wait_line("guest ended", update=update.id)["outcome"] == Outcome.ROLLED_BACK
        agent.stop()
    there.check(on=before)
    FIGURES.append(
        f"updater and guard killed as it stood still, then healed: guest stood still for {there.guest.felt_ms():.1f} ms"
    )


def test_heals_what_breaks_while_it_runs(there: World, tmp_path: Path) -> None:
    before = there.guest.tree()
    with AgentProcess(tmp_path) as agent:
        there.killed(Order(to=there.other_tree.name, end=End(step="start", how=How.KILL_GUARD_TOO)))
        line = agent.wait_line("recovering")
        agent.wait_line("recovered", update=line["update"])
        agent.stop()
    there.check(on=before)


def test_many_looks_leave_nothing_behind(there: World) -> None:
    agents = wiring.Looks(there.lab.config)

    def looks(count: int) -> None:
        for _ in range(count):
            agents.look()
        gc.collect()

    me = psutil.Process()
    looks(10)
    wait_for(no_call_is_left, "calls to have ended")
    files, memory = me.num_fds(), me.memory_info().rss
    begun = time.monotonic()
    looks(60)
    seconds = time.monotonic() - begun
    wait_for(no_call_is_left, "calls to have ended")
    grown = me.memory_info().rss - memory
    FIGURES.append(f"60 looks in {seconds:.1f} s: {grown / 1024:.0f} KiB more memory")
    assert me.num_fds() <= files
    assert grown < 16 << 20


def no_call_is_left() -> bool:
    return not any(thread.name == "hostagent call" for thread in threading.enumerate())


def halted(there: World, *, after: int) -> psutil.Process:
    """The updater of the update that is number `after`, once it stands still."""
    wait_for(lambda: len(there.lab.updates()) > after, "the update to begin")
    updater = psutil.Process(UpdateOrder.of(there.lab.updates()[after]).pid)
    wait_for(lambda: updater.status() == psutil.STATUS_STOPPED, "it to halt")
    return updater


def says_what_became_of_it(there: World, agent: AgentProcess, begun: int) -> dict[str, object]:
    """The line of the restarted agent about the update that its forerunner began."""
    wait_for(
        lambda: agent.has("update ended") or agent.has("last update"), "it to say what became of the update", LIMIT
    )
    update = there.lab.updates()[begun:][-1]
    line = next(line for line in agent.lines if line["event"] in ("update ended", "last update"))
    if line["update"] != update.id:
        line = agent.wait_line("update ended", update=update.id)
    return line

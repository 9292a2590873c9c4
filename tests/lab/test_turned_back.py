"""Handovers that are undone, over and over, and an updater that dies with all guests held: on a real host, under load.

Beside the other host of the lab, which goes through what is swapped (test_lab.py): each has a processor then.
"""

from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.bench.paths import PROJECT
from tests.bench.proof import ProofReport
from tests.bench.soak import flood
from tests.crash.dying_swap import ALL_ARE_SAVED, COMMITTED, DROP_IN, FLAG, SETTINGS
from tests.crash.real_updater import When
from tests.lab.nested import NestedHost
from tests.lab.trip import GUESTS, prove

REPETITIONS = 50
LOAD_INTERVAL = 0.2  # seconds between two datagrams: what an emulated guest can bear
INSIDE = "PYTHONPATH=/root/lab /opt/hostagent/bin/python -m"
FIGURES: list[str] = []


@pytest.fixture(scope="module")
def host(plain_host: NestedHost, request: pytest.FixtureRequest) -> Iterator[NestedHost]:
    """Three guests on it, which work, and the second QEMU."""
    plain_host.machine.send(PROJECT, "tests/__init__.py", "tests/bench", "tests/crash", "tests/lab", to="/root/lab")
    plain_host.machine.shell(f"mkdir -p {DROP_IN.parent}; cat > {DROP_IN} <<'END'\n{SETTINGS}END")
    plain_host.hostagent("qemu", "fetch", "10.0")
    for spec in GUESTS:
        plain_host.boot(spec)
    for spec in GUESTS:
        plain_host.proof(spec).wait_booted(300.0)
    yield plain_host
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    for line in FIGURES:
        reporter.write_line(f"\n{line}", flush=True)


@pytest.fixture(autouse=True)
def load() -> Iterator[None]:
    """Beside what the guests do by themselves: they write to their disks all the time."""
    with ExitStack() as stack:
        for spec in GUESTS:
            stack.enter_context(flood(spec.address, LOAD_INTERVAL))
        yield


@pytest.fixture
def before(host: NestedHost) -> dict[str, ProofReport]:
    return {spec.name: host.proof(spec).report() for spec in GUESTS}


def all_are_whole(host: NestedHost, before: dict[str, ProofReport]) -> None:
    for spec in GUESTS:
        prove(spec.name, before[spec.name], host.proof(spec).check())
    assert host.machine.run("pgrep", "-c", "qemu-system").out.split() == [str(len(GUESTS))]


def test_undone_after_all_was_loaded(host: NestedHost, before: dict[str, ProofReport]) -> None:
    """The old QEMU goes on with rings that the new one had loaded too."""
    host.disconnect()
    said = host.machine.shell(f"{INSIDE} tests.lab.undone {REPETITIONS}", within_seconds=1800).out
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    bad = [line for line in lines if line["trouble"]]
    assert not bad, bad
    pauses = [line["pause"] for line in lines if line["pause"] is not None]
    stood = f": guests stood still for {statistics.median(pauses):.2f} s (median)" if pauses else ""
    FIGURES.append(f"undone after a completed load {len(lines)} times, none bad{stood}")
    assert len(lines) >= REPETITIONS
    all_are_whole(host, before)


@pytest.mark.parametrize(("step", "when"), [ALL_ARE_SAVED, COMMITTED])
def test_the_updater_dies_at_the_barrier(
    host: NestedHost, before: dict[str, ProofReport], step: str, when: When
) -> None:
    """All guests are back by its guard alone, on one side of the barrier; the swap is on the same side.

    Every row of the barrier: tests/guests/test_swap.py, where that takes seconds.
    """
    forward = (step, when) == COMMITTED
    host.machine.run("rm", "-f", str(FLAG))
    host.disconnect()
    # The shell stays to say it: ssh has no number for a signal.
    died = f"{INSIDE} tests.crash.dying_swap {step!r} {when} || exit $?"
    said = host.machine.shell(died, check=False, within_seconds=600)
    assert said.status == 128 + signal.SIGKILL, said
    closed = host.last_closed()
    assert {guest["outcome"] for guest in closed["guests"]} == {"updated" if forward else "rolled-back"}, closed
    assert (host.machine.run("test", "-e", str(FLAG), check=False).status == 0) is forward
    all_are_whole(host, before)
    longest = max(guest["pause_seconds"] or 0.0 for guest in closed["guests"])
    FIGURES.append(f"updater killed {when} {step}: guests stood still for {longest:.1f} s at most")


def test_kvm_modules_that_do_not_load(host: NestedHost, before: dict[str, ProofReport]) -> None:
    """The old ones come back, and the guests with them."""
    host.machine.shell("echo 'options kvm_amd nested=many' > /etc/modprobe.d/kvm.conf")
    host.disconnect()
    host.machine.shell("hostagent update kvm --yes || test $? = 4")
    host.machine.run("rm", "/etc/modprobe.d/kvm.conf")
    closed = host.last_closed()
    assert closed["outcome"] == "rolled-back", closed
    assert host.machine.run("cat", "/sys/module/kvm_amd/parameters/nested").out.strip() == "1"
    all_are_whole(host, before)

"""What surrounds a guest's QEMU on the host is the same before and after a handover, entry by entry.

libvirt sets it when it starts a guest and never again, so that what a new process lacks would stay lost without a word.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.bench.guest_spec import GuestSpec
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.guests import kernel_view
from tests.guests.kernel_view import Entries
from tests.guests.watched import Watched

EXPLAINED = {
    r"status (Tgid|Pid|NStgid|NSpid|NSpgid|NSsid)": "numbers of the process; how they relate is an entry of its own",
    r"status (Vm|Rss|Huge)\w+": "memory in use: the guest's RAM is mapped as it is touched",
    r"status (State|SigQ|SigPnd|ShdPnd|Threads|FDSize)": "what it is doing at the moment",
    r"status (non)?voluntary_ctxt_switches": "counted since it began",
    r"autogroup": "the scheduler's number of its session, one for each",
    r"fd anon_inode:\[eventfd\] rw": "QEMU's own, as many as a version needs",
    r"emulator": "what was to change",
}
SOCKET_NAME = re.compile(r"(fd socket \w+ /.*/)[^/]+$")
"""The kernel lists a socket under the name it was bound to, before it was moved: only the folder counts."""
INCOMING = "\0-incoming\0defer"
"""How the argument list of a QEMU ends that a guest was handed to."""


@dataclass(frozen=True)
class View:
    """A guest's process by the kernel, and its placement by libvirt."""

    entries: Entries
    placement: dict[str, object]


@pytest.fixture(scope="module")
def guest(host: Host, peer: Peer) -> Iterator[Watched]:
    guest = Watched(host, peer, GuestSpec("surrounded", vcpus=2, placed=True))
    with host.guest(guest.spec):
        guest.proof.wait_booted()
        yield guest


@pytest.fixture(scope="module", params=["up", "back"])
def views(guest: Watched, lab: Lab, request: pytest.FixtureRequest) -> tuple[View, View]:
    """Before and after."""
    before = view_of(guest)
    lab.update(lab.newer if request.param == "up" else lab.system)
    return before, view_of(guest)


def view_of(guest: Watched) -> View:
    entries = {SOCKET_NAME.sub(r"\1*", name): text for name, text in kernel_view.read(guest.pid).items()}
    entries["arguments"] = entries["arguments"].removesuffix(INCOMING)
    domain = guest.domain
    placement = {
        "scheduler": domain.schedulerParameters(),
        "vCPUs": domain.vcpuPinInfo(),
        "emulator": domain.emulatorPinInfo(),
        "I/O threads": [(number, cpus) for number, cpus, *_ in domain.ioThreadInfo()],
        "limits": domain.memoryParameters(),
    }
    return View(entries, placement)


def is_explained(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in EXPLAINED)


def test_all_that_is_not_explained_is_the_same(views: tuple[View, View]) -> None:
    before, after = (view.entries for view in views)
    found = kernel_view.differences(before, after)
    assert {name: values for name, values in found.items() if not is_explained(name)} == {}


def test_libvirt_says_the_same_of_its_placement(views: tuple[View, View]) -> None:
    before, after = (view.placement for view in views)
    assert after == before


@pytest.mark.parametrize(
    ("thread", "affinity", "group", "quota"),
    [
        ("main", "[1]", "emulator", 400_001),
        ("CPU 0/TCG", "[0]", "vcpu0", 400_000),
        ("CPU 1/TCG", "[1]", "vcpu1", 400_000),
        ("IO iothread1", "[0]", "iothread1", 400_002),
    ],
)
def test_each_kind_of_thread_is_where_the_definition_wants_it(
    views: tuple[View, View], thread: str, affinity: str, group: str, quota: int
) -> None:
    """Else the comparison would have nothing to compare."""
    for view in views:
        of_thread = {name.partition(": ")[2]: text for name, text in view.entries.items() if f"thread {thread}" in name}
        assert of_thread["affinity"] == affinity
        assert f"/{group}\n" in of_thread["cgroup"]
        assert str(quota) in of_thread["CPU time"]


def test_guest_is_well(views: tuple[View, View], guest: Watched) -> None:
    assert guest.proof.check().good

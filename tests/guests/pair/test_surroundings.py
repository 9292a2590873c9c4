"""What surrounds a guest's QEMU on the host is the same before and after a handover, entry by entry.

libvirt sets it when it starts a guest and never again, so that what a new process lacks would stay lost without a word.
"""

import re

import pytest

from tests.guests import kernel_view
from tests.guests.kernel_view import Entries
from tests.guests.pair.passages import Crossing, View

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


def comparable(view: View) -> Entries:
    entries = {SOCKET_NAME.sub(r"\1*", name): text for name, text in view.entries.items()}
    return entries | {"arguments": entries["arguments"].removesuffix(INCOMING)}


def is_explained(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in EXPLAINED)


def test_all_that_is_not_explained_is_the_same(crossing: Crossing) -> None:
    found = kernel_view.differences(comparable(crossing.before), comparable(crossing.after))
    assert {name: values for name, values in found.items() if not is_explained(name)} == {}


def test_libvirt_says_the_same_of_its_placement(crossing: Crossing) -> None:
    assert crossing.after.placement == crossing.before.placement


@pytest.mark.parametrize(
    ("thread", "affinity", "group", "quota"),
    [
        ("main", "[1]", "emulator", 400_001),
        ("CPU 0/", "[0]", "vcpu0", 400_000),
        ("CPU 1/", "[1]", "vcpu1", 400_000),
        ("IO iothread1", "[0]", "iothread1", 400_002),
    ],
)
def test_each_kind_of_thread_is_where_the_definition_wants_it(
    crossings: dict[tuple[str, str], Crossing], thread: str, affinity: str, group: str, quota: int
) -> None:
    """Else the comparison would have nothing to compare."""
    entries = crossings["back", "placed"].after.entries
    of_thread = {name.partition(": ")[2]: text for name, text in entries.items() if name.startswith(f"thread {thread}")}
    assert of_thread["affinity"] == affinity
    assert f"/{group}\n" in of_thread["cgroup"]
    assert str(quota) in of_thread["CPU time"]

"""A libvirt that falls silent costs its caller the deadline, and nobody more."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import libvirt
import pytest

from hostagent.errors import OutcomeUnknown
from hostagent.hypervisor import libvirt_line
from hostagent.hypervisor.libvirt_line import LibvirtLine

URI = "qemu+tcp://far/system"


@dataclass
class Far:
    """Another host, which answers or does not; what was let go of without being closed."""

    answers: threading.Event = field(default_factory=threading.Event)
    let_go: int = 0

    def connect(self, uri: str) -> Connection:
        assert uri == URI
        return Connection(self)


class Connection:
    """As libvirt's: whoever lets go of the last one closes it, and waits for that."""

    def __init__(self, far: Far) -> None:
        self._far = far
        self.there = True

    def getType(self) -> str:  # noqa: N802 - libvirt's
        return "QEMU"

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's
        return self.there

    def lookupByUUIDString(self, uuid: str) -> str:  # noqa: N802 - libvirt's
        self._far.answers.wait()
        return uuid

    def close(self) -> None:
        self._far.answers.wait()

    def __del__(self) -> None:
        self._far.let_go += 1


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    made = Far()
    monkeypatch.setattr(libvirt, "open", made.connect)
    monkeypatch.setattr(libvirt_line, "CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(libvirt_line, "_LOST", [])
    yield made
    made.answers.set()


def line(call_seconds: float = 0.05) -> LibvirtLine:
    return LibvirtLine(URI, call_seconds)


def find(of: LibvirtLine) -> object:
    return of._domain("a guest")


def late_calls_end(far: Far) -> None:
    """What held on to their connections goes with them."""
    before = [thread for thread in threading.enumerate() if thread.name == "hostagent call"]
    far.answers.set()
    for thread in before:
        thread.join(5.0)
        assert not thread.is_alive()
    gc.collect()


def test_the_connection_of_a_late_call_is_kept(far: Far) -> None:
    asking = line()
    with pytest.raises(OutcomeUnknown):
        find(asking)
    asking.disconnect()
    late_calls_end(far)
    assert far.let_go == 0


def test_and_one_that_does_not_close(far: Far) -> None:
    asking = line(5.0)
    far.answers.set()
    assert find(asking) == "a guest"
    far.answers.clear()
    asking.disconnect()
    late_calls_end(far)
    assert far.let_go == 0


def test_the_next_call_has_a_connection_of_its_own(far: Far) -> None:
    asking = line()
    with pytest.raises(OutcomeUnknown):
        find(asking)
    far.answers.set()
    assert find(asking) == "a guest"


def test_one_whose_end_was_seen_is_let_go_of_with_the_next(far: Far) -> None:
    first, second = line(), line()
    with pytest.raises(OutcomeUnknown):
        find(first)
    (ended,) = libvirt_line._LOST
    ended.there = False
    with pytest.raises(OutcomeUnknown):
        find(second)
    (kept,) = libvirt_line._LOST
    assert kept is not ended


def test_threads_that_ended_leave_none_open(far: Far) -> None:
    asking = line(5.0)
    far.answers.set()
    thread = threading.Thread(target=find, args=(asking,))
    thread.start()
    thread.join()
    asking.disconnect()
    gc.collect()
    assert (libvirt_line._LOST, far.let_go) == ([], 1)


def test_threads_that_end_at_the_same_time_close_each_connection_once(far: Far) -> None:
    asking, failed = line(5.0), list[BaseException]()
    far.answers.set()

    def comes_and_goes() -> None:
        try:
            find(asking)
            asking.disconnect()
        except BaseException as error:
            failed.append(error)

    for _ in range(20):
        threads = [threading.Thread(target=comes_and_goes) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (failed, asking._opened) == ([], {})

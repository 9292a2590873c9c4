"""Work on several guests at the same time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from hostagent.update import side_by_side as module
from hostagent.update.side_by_side import side_by_side


@dataclass
class Connections:
    """Who closed his own."""

    closed: list[str] = field(default_factory=list)

    def disconnect(self) -> None:
        self.closed.append(threading.current_thread().name)


def ports(at_once: int = 0) -> Any:
    update = SimpleNamespace(side_by_side=at_once)
    return SimpleNamespace(config=SimpleNamespace(update=update), libvirt=Connections(), hosts={"peer": Connections()})


def most_at_once(given: Any, members: int, *, a_core: int = 1) -> int:
    """How many are at work when as many are as there will be."""
    lock, at_work, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        threading.Event().wait(0.02)
        with lock:
            at_work -= 1

    assert len(list(side_by_side(given, range(members), work, "test", a_core=a_core))) == members
    return most


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 3)


@pytest.mark.parametrize("at_once", [1, 0, 7])
def test_each_comes_in_its_order_with_what_came_of_it(at_once: int) -> None:
    came = list(side_by_side(ports(at_once), "abcdefgh", str.upper, "test"))
    assert came == [(one, one.upper()) for one in "abcdefgh"]


def test_by_itself_so_many_for_each_core_and_not_more_than_libvirt_does() -> None:
    assert most_at_once(ports(), 40) <= 3
    assert most_at_once(ports(), 40, a_core=4) <= 12
    assert 12 < most_at_once(ports(), 100, a_core=50) <= module.AT_MOST


def test_as_many_as_the_settings_say() -> None:
    assert most_at_once(ports(2), 20, a_core=4) <= 2


def test_each_thread_closes_its_connections_once() -> None:
    given = ports(2)
    list(side_by_side(given, range(9), lambda _: threading.Event().wait(0.005), "test"))
    assert sorted(given.libvirt.closed) == sorted(given.hosts["peer"].closed) == ["test_0", "test_1"]


def test_one_after_the_other_whoever_stops_asking_stops_the_work() -> None:
    begun: list[int] = []
    given = ports(1)
    assert next(side_by_side(given, range(9), begun.append, "test")) == (0, None)
    assert (begun, given.libvirt.closed) == ([0], [])


def test_a_fault_is_raised_and_keeps_nobody_elses_connection() -> None:
    given = ports(2)
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(given, range(4), lambda one: 1 // (one - 1), "test"))
    assert len(given.libvirt.closed) == 2

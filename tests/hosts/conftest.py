"""Two hosts for all tests of guests that migrate; on the first a peer, which guests on either are connected to."""

import os
from collections.abc import Iterator

import pytest

from tests.bench.guest_spec import HOST_ADDRESS
from tests.bench.host import DAEMON
from tests.bench.lab import Lab
from tests.bench.link import A, B
from tests.bench.peer import Peer
from tests.bench.two_hosts import URIS, TwoHosts, two_hosts
from tests.hosts import panics
from tests.hosts.guests import Standing
from tests.hosts.peers import Putting, putting


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in panics.run(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture(scope="package")
def both() -> Iterator[TwoHosts]:
    if "HOSTAGENT_BENCH" not in os.environ:
        pytest.skip("runs inside the bench")
    if DAEMON != "libvirtd":
        pytest.skip("of the modular daemons there is none that listens (virtproxyd)")
    with two_hosts() as both:
        yield both


@pytest.fixture
def hosts(both: TwoHosts, peer: Peer) -> Iterator[TwoHosts]:
    """Both run and are joined before each test and after it, whatever it did to them; the peer is there for guests."""
    both.mend()
    yield both
    both.mend()


@pytest.fixture(scope="package")
def peer(both: TwoHosts) -> Iterator[Peer]:
    with Peer(HOST_ADDRESS) as peer:
        panics.PANICS.peer = peer
        yield peer
        panics.PANICS.peer = None


@pytest.fixture(scope="package")
def lab(both: TwoHosts) -> Lab:
    """hostagent on the first host; the second has its own, set up in the same way."""
    return Lab.set_up(start=both.a.start_command)


@pytest.fixture(scope="package")
def standing(both: TwoHosts, peer: Peer, lab: Lab) -> Iterator[Standing]:
    """Ask it for a guest once the hosts are joined (`hosts`)."""
    with Standing(both, lab.system.emulator) as standing:
        yield standing


@pytest.fixture
def put(lab: Lab) -> Iterator[Putting]:
    """What the settings say of the other host; gone afterwards."""
    with putting() as put:
        yield put


@pytest.fixture
def uri_of_b() -> str:
    """libvirt on the second host, as the first one calls it."""
    return URIS[B]


@pytest.fixture
def uri_of_a() -> str:
    return URIS[A]

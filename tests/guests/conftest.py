"""One host for all real guests: libvirt, a bridge with a peer on it, and hostagent with both QEMUs."""

import os
from collections.abc import Iterator

import pytest

from tests.bench.guest_spec import HOST_ADDRESS
from tests.bench.host import Host
from tests.bench.lab import Lab
from tests.bench.peer import Peer


@pytest.fixture(scope="package")
def host() -> Iterator[Host]:
    if "HOSTAGENT_BENCH" not in os.environ:
        pytest.skip("runs inside the bench")
    with Host(ram="16g") as host:
        yield host


@pytest.fixture(scope="package")
def peer(host: Host) -> Iterator[Peer]:
    with Peer(HOST_ADDRESS) as peer:
        yield peer


@pytest.fixture(scope="package")
def lab(host: Host) -> Lab:
    """Without rehearsals: test_rehearsal.py is about those."""
    return Lab.set_up(rehearse=False)

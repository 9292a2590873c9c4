"""Boots a host of the lab and waits, for whoever looks into it by hand: python -m tests.lab, inside the bench."""

import time
from pathlib import Path

from tests.bench.guest_spec import HOST_ADDRESS
from tests.bench.host import make_bridge
from tests.bench.peer import Peer
from tests.lab.machine import Machine


def main() -> None:
    """Until it is ended."""
    make_bridge()
    with Peer(HOST_ADDRESS), Machine("a", 1, Path("/tmp/lab")) as machine:
        print("up", machine.boot_id, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()

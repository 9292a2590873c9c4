"""Boots a host of the lab and waits, for whoever looks into it by hand: python -m tests.lab, inside the bench."""

import subprocess
import time
from pathlib import Path

from tests.bench.guest_spec import BRIDGE, BRIDGE_MAC, HOST_ADDRESS
from tests.bench.peer import Peer
from tests.lab.machine import Machine


def main() -> None:
    """Until it is ended."""
    for words in (
        ("add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"),
        ("set", BRIDGE, "up"),
    ):
        subprocess.run(["ip", "link", *words], check=True)
    subprocess.run(["ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", BRIDGE], check=True)
    with Peer(HOST_ADDRESS), Machine("a", 1, Path("/tmp/lab")) as machine:
        print("up", machine.boot_id, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()

"""A kernel that does not come up takes the guests' RAM with it: what is reported then, and that nothing old is loaded.

Not part of `make lab-test`, as it takes six minutes: make lab-test PYTEST_ARGS=tests/lab/test_kernel_panics.py
"""

from __future__ import annotations

from tests.lab.nested import NestedHost
from tests.lab.trip import GUESTS, Trips

# The first program of this initial RAM disk ends at once, at which Linux panics; with panic=10 firmware then starts the
# host anew, and GRUB the kernel from before.
DAMAGED = """
set -e
cd $(mktemp -d)
mkdir -p conf
printf '#!/bin/false\\n' > init
chmod +x init
printf "init\\nconf\\n" | cpio --quiet -o -H newc | gzip > /boot/initrd.img-RELEASE
"""


def test_a_kernel_that_panics(host: NestedHost, trips: Trips) -> None:
    machine = host.machine
    other = machine.shell("ls /boot/vmlinuz-6.12*").out.strip().removeprefix("/boot/vmlinuz-")
    before = {spec.name: host.proof(spec).report().boot_id for spec in GUESTS}
    host.disconnect()
    machine.shell(DAMAGED.replace("RELEASE", other))
    host.leap(other)
    said = host.last_closed()
    assert machine.run("uname", "-r").out.startswith("6.1."), "expected the kernel from before, by firmware"
    assert said["outcome"] == "lost", said
    assert {guest["outcome"] for guest in said["guests"]} == {"lost"}
    assert all("restarted" in guest["reason"] for guest in said["guests"]), said
    for spec in GUESTS:
        host.connection.lookupByUUIDString(spec.uuid).create()
    for spec in GUESTS:
        assert host.proof(spec).wait_booted(300.0).boot_id != before[spec.name]

"""A host of the lab with guests on it: its libvirt, its guests, and hostagent on it, from outside."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import libvirt

from tests.bench.guest_spec import GUEST_FILES, GuestSpec, domain_xml
from tests.bench.host import DISK_SIZE
from tests.bench.proof import Proof
from tests.lab.machine import LabError, Machine, Said

CLOSED_LIMIT = 300.0  # seconds
LEAP_LIMIT = 600.0  # seconds, until the host is up again
SITE = "/opt/hostagent/lib/python3.11/site-packages"
# Asking hostagent itself takes an emulated host ten seconds, which what is waited for needs as well.
_WHILE_IT_WORKS = """
for _ in $(seq 200); do
    pgrep -f ^/opt/hostagent/bin/python > /dev/null ||
        [ "$(systemctl is-active hostagent-boot.service)" = activating ] || break
    sleep 1
done
"""


class NestedHost:
    """What is done on a host of the lab."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._connection: libvirt.virConnect | None = None

    def install_hostagent(self) -> None:
        """As it is now, in the place of the one in the image; and the test guest's files."""
        self.machine.shell(
            f"mountpoint -q /media || mount /media; rm -rf {SITE}/hostagent {SITE}/hostagent-*; "
            f"cp -r /media/site/. {SITE}; "
            f"cp /media/vmlinuz /media/initramfs {GUEST_FILES}"
        )

    def hostagent(self, *words: str, check: bool = True, within_seconds: float = 600.0) -> Said:
        """As a person types it."""
        return self.machine.run("hostagent", *words, check=check, within_seconds=within_seconds)

    def update(self, *words: str) -> dict[str, Any]:
        """`hostagent update ... --yes --json`: the document that it prints; fails unless it says that all went well."""
        said = self.machine.shell(f"hostagent update {' '.join(words)} --yes --json 2>/tmp/said", check=False)
        if said.status != 0:
            told = self.machine.shell("cat /tmp/said").out
            raise LabError(f"hostagent update {' '.join(words)}: exit status {said.status}\n{said.out}\n{told}")
        found: dict[str, Any] = json.loads(said.out)
        return found

    def leap(self, release: str) -> None:
        """`hostagent update kernel`, until the host is up again, under whichever kernel; LabError when it stays."""
        machine = self.machine
        before = machine.boot_id
        # On its own: whoever is connected waits for a host that is not there any more.
        update = f"nohup hostagent update kernel --to {release} --yes > /var/log/leap.log 2>&1 < /dev/null & echo $!"
        updater = machine.shell(update).out.strip()
        there = 0
        with suppress(LabError):  # it does not answer any more
            while there == 0:
                there = machine.run("test", "-e", f"/proc/{updater}", check=False, within_seconds=20.0).status
                time.sleep(2.0)
        if there == 1 and machine.boot_id == before:
            said = machine.shell("cat /var/log/leap.log").out
            raise LabError(f"{machine.name}: expected it under {release}, found that it did not leap\n{said}")
        machine.wait_up(LEAP_LIMIT, other_than=before)

    def last_closed(self) -> dict[str, Any]:
        """The newest update, once it has ended: as a host boots, or by a guard, that takes a while."""
        until = time.monotonic() + CLOSED_LIMIT
        while True:
            self.machine.shell(_WHILE_IT_WORKS)
            (said,) = json.loads(self.hostagent("history", "--json").out)["updates"][-1:]
            if said["ended"] is not None or time.monotonic() > until:
                return dict(said)
            time.sleep(3.0)

    @property
    def connection(self) -> libvirt.virConnect:
        """A live connection, opened again if libvirtd went away since."""
        if self._connection is not None:
            with suppress(libvirt.libvirtError):
                self._connection.getLibVersion()
                return self._connection
        self.disconnect()
        self._connection = libvirt.open(self.machine.libvirt_uri)
        return self._connection

    def disconnect(self) -> None:
        if self._connection is not None:
            with suppress(libvirt.libvirtError):
                self._connection.close()
        self._connection = None

    def boot(self, spec: GuestSpec) -> libvirt.virDomain:
        """Start a new guest, with KVM and vhost-net."""
        if spec.disk:
            self.machine.run("qemu-img", "create", "-q", "-f", "qcow2", str(spec.disk_path), DISK_SIZE)
        domain = self.connection.defineXML(domain_xml(spec, kvm=True, vhost=True))
        domain.create()
        return domain

    def proof(self, spec: GuestSpec) -> Proof:
        """What the guest says of itself."""
        return Proof(self.connection.lookupByUUIDString(spec.uuid))

    def remove(self, spec: GuestSpec) -> None:
        with suppress(libvirt.libvirtError):
            domain = self.connection.lookupByUUIDString(spec.uuid)
            with suppress(libvirt.libvirtError):
                domain.destroy()
            domain.undefine()

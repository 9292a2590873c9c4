"""Two test guests of a lab host, started and asked there: lab-guests start, lab-guests look.

Their disks are on the hosts' shared storage. Runs on the host's own Python, with its libvirt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import libvirt

from tests.bench.guest_spec import GuestSpec, domain_xml
from tests.bench.proof import NotBootedError, NotReadyError, Proof

STORAGE = Path("/srv/guests")
BOOT_LIMIT = 600.0  # seconds; emulated


@dataclass(frozen=True)
class LabGuest(GuestSpec):
    """One whose disk other hosts see as well."""

    pace: int = 20  # a host may be emulated

    @property
    def disk_path(self) -> Path:
        return STORAGE / f"{self.name}.qcow2"


GUESTS = (
    LabGuest(name="web", index=1, memory_mib=256, fill_mib=100, seed=11),
    LabGuest(name="database", index=2, memory_mib=384, fill_mib=200, seed=22),
)


def start(connection: libvirt.virConnect) -> int:
    """Every one that is not there yet; done when they are up."""
    for spec in GUESTS:
        if not spec.disk_path.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(spec.disk_path), "64M"], check=True)
        domain = connection.defineXML(domain_xml(spec, kvm=True, vhost=True))
        if not domain.isActive():
            domain.create()
    for spec in GUESTS:
        report = Proof(connection.lookupByName(spec.name)).wait_booted(BOOT_LIMIT, connected=False)
        print(f"{spec.name}: up, {report.ram.pages} pages of its RAM filled")
    return 0


def look(connection: libvirt.virConnect) -> int:
    """Have each guest read its RAM and its disk back; 1 when anything is wrong there."""
    bad = 0
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        report = Proof(domain).check()
        good = report.ram.good and report.disk.good
        bad += not good
        print(
            f"{domain.name():<8}  boot {report.boot_id[:8]}, up for {report.monotonic_ns / 1e9:.0f} s; "
            f"RAM: {report.ram.checked} of {report.ram.pages} pages read back, {report.ram.bad} bad; "
            f"disk: {report.disk.checked} records, {report.disk.damaged + report.disk.out_of_order} bad"
        )
    return int(bad > 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab-guests", description=__doc__)
    parser.add_argument("what", choices=("start", "look"))
    asked = parser.parse_args()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # what is raised is enough
    connection = libvirt.open("qemu:///system")
    try:
        return {"start": start, "look": look}[asked.what](connection)
    except (libvirt.libvirtError, NotBootedError, NotReadyError) as error:
        print(f"lab-guests: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

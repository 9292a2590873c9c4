"""Everything that hostagent swaps, on a real host: systemd, machined, cgroup v2, AppArmor enforced, KVM, vhost-net.

In this order: each test finds the host and its guests as the one before left them.
"""

from __future__ import annotations

from typing import Any

from tests.lab.nested import NestedHost
from tests.lab.trip import GUESTS, Trips

LEAP_LIMIT = 600.0  # seconds, from the first guest that stands still
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Options::=--force-confold"


def updates(said: dict[str, Any]) -> dict[str, Any]:
    """The one update of a document."""
    found = said.get("updates", [said])
    assert len(found) == 1, found
    one: dict[str, Any] = found[0]
    return one


def test_qemu_after_a_real_upgrade(host: NestedHost, trips: Trips) -> None:
    """By a handover; the new QEMUs are as confined as the old ones."""
    host.hostagent("inspect")  # keeps the QEMU that guests run on
    host.machine.shell(f"apt-get -qq update; {APT} install qemu-system-x86")
    report = trips.take("QEMU", lambda: updates(host.update("qemu")))
    assert {guest["outcome"] for guest in report["guests"]} == {"updated"}
    labels = host.machine.shell("ps -eo label,args | grep '[q]emu-system'").out.splitlines()
    assert len(labels) == len(GUESTS)
    assert all(line.startswith("libvirt-") and "(enforce)" in line for line in labels), labels
    assert host.machine.shell("machinectl list --no-legend | wc -l").out.split() == [str(len(GUESTS))]


def test_kvm_modules(host: NestedHost, trips: Trips) -> None:
    """Unloaded and loaded with another parameter; no guest runs on them meanwhile."""
    host.machine.shell("echo 'options kvm_amd nested=0' > /etc/modprobe.d/kvm.conf")
    before = host.machine.shell("cat /sys/module/kvm_amd/parameters/nested").out.strip()
    report = trips.take("kvm_amd", lambda: updates(host.update("kvm")))
    assert {guest["outcome"] for guest in report["guests"]} == {"updated"}
    assert (before, host.machine.shell("cat /sys/module/kvm_amd/parameters/nested").out.strip()) == ("1", "0")


def test_the_kernel(host: NestedHost, trips: Trips) -> None:
    """By kexec into another version: the host boots, and the guests go on."""
    machine = host.machine
    release = machine.shell("uname -r").out.strip()
    other = next(
        line.removeprefix("vmlinuz-")
        for line in machine.shell("ls /boot").out.split()
        if line.startswith("vmlinuz-") and line != f"vmlinuz-{release}"
    )

    def leap() -> dict[str, Any]:
        before = machine.boot_id
        # On its own: whoever is connected waits for a host that is not there any more.
        machine.shell(f"nohup hostagent update kernel --to {other} --yes > /var/log/leap.log 2>&1 < /dev/null &")
        machine.wait_up(LEAP_LIMIT, other_than=before)
        return host.last_closed()

    report = trips.take("kernel", leap)
    assert {guest["outcome"] for guest in report["guests"]} == {"updated"}
    assert {guest["clock_outcome"] for guest in report["guests"]} <= {"in-sync", "corrected"}, report
    assert machine.shell("uname -r").out.strip() == other


def test_libvirtd_after_a_real_upgrade(host: NestedHost, trips: Trips) -> None:
    """Its package is upgraded with the old daemon left running; then the new one takes over, and no guest is paused."""
    machine = host.machine
    machine.shell(
        "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; "
        f"apt-get -qq update; {APT} install libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients; "
        "rm /usr/sbin/policy-rc.d",
        within_seconds=600,
    )
    host.disconnect()
    running = machine.shell("pidof qemu-system-x86_64").out.split()
    report = trips.take("libvirtd", lambda: updates(host.update("libvirtd")), paused=False)
    assert report["outcome"] == "updated", report
    assert "11.3" in machine.shell("virsh version --daemon").out
    assert machine.shell("pidof qemu-system-x86_64").out.split() == running


def test_the_plug_is_pulled(host: NestedHost, trips: Trips) -> None:
    """While all guests are held: what was saved is never loaded, and each of them is said to have been restarted."""
    machine = host.machine
    before = {spec.name: host.proof(spec).report().boot_id for spec in GUESTS}
    host.disconnect()
    machine.shell("echo 'options kvm_amd nested=1' > /etc/modprobe.d/kvm.conf; sync")
    machine.shell("nohup hostagent update kvm --yes > /tmp/said 2>&1 < /dev/null &")
    machine.shell("until grep -q 'kvm: swapping it' /tmp/said; do sleep 0.2; done", within_seconds=300)
    machine.pull_the_plug()
    said = host.last_closed()
    assert said["outcome"] == "lost", said
    assert {guest["outcome"] for guest in said["guests"]} == {"lost"}
    assert all("restarted" in guest["reason"] for guest in said["guests"]), said
    assert not machine.shell("ls /run/hostagent/held 2>/dev/null || true").out.strip()
    spec = GUESTS[0]
    host.connection.lookupByUUIDString(spec.uuid).create()
    assert host.proof(spec).wait_booted(300.0).boot_id != before[spec.name]

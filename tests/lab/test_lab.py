"""Everything that hostagent swaps, on a real host: systemd, machined, cgroup v2, AppArmor enforced, KVM, vhost-net.

In this order: each test finds the host and its guests as the one before left them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.nested import NestedHost
from tests.lab.trip import GUESTS, Trips

# The newer libvirt once more, in a version of its own, and with a daemon that ends as soon as it has begun.
MAKE_BROKEN = r"""
cd /srv/repository
for package in libvirt*_11.3.0-2~bpo12+1_*.deb; do
    tree=$(mktemp -d)/tree
    dpkg-deb -R $package $tree
    sed -i 's/11\.3\.0-2~bpo12+1/11.3.1-1/g' $tree/DEBIAN/control
    if [ -e $tree/usr/sbin/libvirtd ]; then
        printf '#!/bin/sh\nexit 127\n' > $tree/usr/sbin/libvirtd
    fi
    dpkg-deb -Znone --root-owner-group -b $tree .
    rm -r $tree
done
apt-ftparchive packages . > Packages
apt-get -qq update
"""
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
        host.leap(other)
        return host.last_closed()

    report = trips.take("kernel", leap)
    assert {guest["outcome"] for guest in report["guests"]} == {"updated"}
    assert {guest["clock_outcome"] for guest in report["guests"]} <= {"in-sync", "corrected"}, report
    assert machine.shell("uname -r").out.strip() == other


def beside_guests(host: NestedHost) -> dict[str, str]:
    """Processes that an update of libvirt leaves alone, and a service that would end the guests by being stopped."""
    shell = host.machine.shell
    return {
        "guests": shell("pidof qemu-system-x86_64").out,
        "virtlogd": shell("systemctl show --property=MainPID,ActiveState virtlogd.service").out,
        "libvirt-guests": shell("systemctl show --property=ActiveState,ActiveEnterTimestamp libvirt-guests").out,
    }


@pytest.fixture
def broken_libvirt(host: NestedHost) -> Iterator[None]:
    """In the host's repository, and not waited for as long; the tests after this one have neither."""
    host.machine.shell(MAKE_BROKEN, within_seconds=600)
    ready = "/etc/hostagent/hostagent.toml.d/60-ready.toml"
    host.machine.shell(f"mkdir -p $(dirname {ready}); printf '[libvirt.daemon]\\nready_seconds = 30\\n' > {ready}")
    yield
    away = f"rm {ready} /srv/repository/*_11.3.1-1_*; cd /srv/repository; apt-ftparchive packages . > Packages"
    host.machine.shell(away)


@pytest.mark.usefixtures("broken_libvirt")
def test_libvirtd_that_does_not_come_up(host: NestedHost, trips: Trips) -> None:
    """Its packages are put in, its daemon ends at once; the old packages go back, and no guest notices."""
    machine = host.machine
    before = beside_guests(host)

    def update() -> dict[str, Any]:
        words = "hostagent update libvirtd --to 11.3.1 --yes"
        said = machine.shell(f"{words} || test $? = 4", within_seconds=900)
        assert "not swapped, and as before: waiting for libvirt's daemon" in " ".join(said.out.split()), said.out
        return host.last_closed()

    report = trips.take("libvirtd, back", update, paused=False)
    assert report["outcome"] == "rolled-back", report
    assert "Running against daemon: 9.0.0" in machine.shell("virsh version --daemon").out
    assert sorted(machine.shell("virsh list --name").out.split()) == sorted(spec.name for spec in GUESTS)
    assert beside_guests(host) == before
    assert machine.shell("dpkg --audit; dpkg-divert --list | grep -i virt || true").out == ""


def test_libvirtd_by_a_real_upgrade(host: NestedHost, trips: Trips) -> None:
    """hostagent upgrades its packages; only libvirtd is restarted, and no guest is paused."""
    machine = host.machine
    machine.shell("apt-get -qq update")
    before = beside_guests(host)
    report = trips.take("libvirtd", lambda: updates(host.update("libvirtd", "--to", "11.3")), paused=False)
    assert report["outcome"] == "updated", report
    assert "Running against daemon: 11.3.0" in machine.shell("virsh version --daemon").out
    assert sorted(machine.shell("virsh list --name").out.split()) == sorted(spec.name for spec in GUESTS)
    assert beside_guests(host) == before
    daemons = machine.shell("readlink /proc/$(pidof libvirtd)/exe /proc/$(pidof virtlogd)/exe").out.split()
    assert daemons == ["/usr/sbin/libvirtd", "/usr/sbin/virtlogd"]  # both run what is installed


def test_the_plug_is_pulled(host: NestedHost, trips: Trips) -> None:
    """While all guests are held: what was saved is never loaded, and each of them is said to have been restarted."""
    machine = host.machine
    before = {spec.name: host.proof(spec).report().boot_id for spec in GUESTS}
    host.disconnect()
    machine.shell("echo 'options kvm_amd nested=1' > /etc/modprobe.d/kvm.conf; sync")
    updater = machine.shell("nohup hostagent update kvm --yes > /tmp/said 2>&1 < /dev/null & echo $!").out.strip()
    waits = f"until grep -q 'kvm: swapping it' /tmp/said; do kill -0 {updater}; sleep 0.2; done"
    assert machine.shell(waits, within_seconds=300, check=False).status == 0, machine.shell("cat /tmp/said").out
    machine.pull_the_plug()
    said = host.last_closed()
    assert said["outcome"] == "lost", said
    assert {guest["outcome"] for guest in said["guests"]} == {"lost"}
    assert all("restarted" in guest["reason"] for guest in said["guests"]), said
    assert not machine.shell("ls /run/hostagent/held 2>/dev/null || true").out.strip()
    spec = GUESTS[0]
    host.connection.lookupByUUIDString(spec.uuid).create()
    assert host.proof(spec).wait_booted(300.0).boot_id != before[spec.name]

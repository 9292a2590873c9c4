"""Argument lists of guests that were changed while they ran, brought up to what they are now."""

import json

import pytest
import sampled

from hostagent.arguments.command_line import CommandLine, blockers
from hostagent.hypervisor.domain_xml import changed_since_boot
from hostagent.hypervisor.reconciled import reconciled

CHANGED = ("hot-nic", "snapshot", "commit-after")


def now(name: str) -> CommandLine:
    return reconciled(sampled.xml(name), CommandLine.parse(sampled.argv(name))).line


@pytest.mark.parametrize("name", sorted(set(sampled.GOOD) - {"commit-after"}))
def test_one_that_was_not_changed_stays_word_for_word(name: str) -> None:
    assert list(now(name).argv) == sampled.argv(name)


@pytest.mark.parametrize("name", sampled.ALL)
def test_it_can_be_said_twice(name: str) -> None:
    assert reconciled(sampled.xml(name), now(name)).line == now(name)


@pytest.mark.parametrize("name", CHANGED)
def test_nothing_is_left_to_name_and_nothing_untested_is_in_it(name: str) -> None:
    assert changed_since_boot(sampled.xml(name), now(name)) == ()
    assert blockers(now(name)) == ()


def test_what_was_plugged_in_is_as_libvirt_would_have_written_it() -> None:
    before = sampled.argv("hot-nic")
    found = reconciled(sampled.xml("hot-nic"), CommandLine.parse(before))
    added = [json.loads(word) for word in found.line.argv if word.startswith("{") and word not in before]
    assert added == [
        {
            "driver": "file",
            "filename": "/var/lib/libvirt/images/hot.qcow2",
            "node-name": "libvirt-2-storage",
            "auto-read-only": True,
            "discard": "unmap",
        },
        {
            "node-name": "libvirt-2-format",
            "read-only": False,
            "driver": "qcow2",
            "file": "libvirt-2-storage",
            "backing": None,
        },
        {
            "driver": "virtio-blk-pci",
            "bus": "pci.7",
            "addr": "0x0",
            "drive": "libvirt-2-format",
            "id": "virtio-disk7",
        },
        {"type": "tap", "fd": "32", "id": "hostnet1"},
        {
            "driver": "virtio-net-pci",
            "netdev": "hostnet1",
            "id": "net1",
            "mac": "52:54:00:d7:93:83",
            "bus": "pci.8",
            "addr": "0x0",
        },
    ]
    assert found.plugged_taps == {32: "vnet29"}
    assert [word for word in before if word not in found.line.argv] == []


def test_a_snapshot_puts_an_image_on_top() -> None:
    nodes = {node.name: node for node in now("snapshot").block_nodes()}
    assert list(nodes) == [
        *("libvirt-1-storage", "libvirt-1-format", "libvirt-3-storage", "libvirt-3-format"),
        *("libvirt-2-storage", "libvirt-2-format", "libvirt-4-storage", "libvirt-4-format"),
    ]
    top, below = nodes["libvirt-3-format"], nodes["libvirt-1-format"]
    assert (top.backing, top.read_only, top.driver) == ("libvirt-1-format", False, "qcow2")
    assert (below.backing, below.read_only) == ("", True)
    drives = {item.get("id"): item.get("drive") for item in now("snapshot").named("device") if item.has("drive")}
    assert drives == {"virtio-disk0": "libvirt-3-format", "virtio-disk7": "libvirt-4-format"}


def test_what_was_plugged_out_is_gone_with_what_was_behind_it() -> None:
    plugged = now("hot-nic")
    line = reconciled(sampled.xml("hot-before"), plugged).line
    assert list(line.argv) == sampled.argv("hot-before")


def with_vcpus(*vcpus: str) -> str:
    return sampled.xml("vcpu-current").replace("</vcpu>", f"</vcpu><vcpus>{''.join(vcpus)}</vcpus>", 1)


FIRST = "<vcpu id='0' enabled='yes' hotpluggable='no' order='1'/>"
SECOND = "<vcpu id='1' enabled='{}' hotpluggable='yes' order='2'/>"


def test_a_vcpu_that_was_plugged_in_is_a_device_and_gone_when_it_is_plugged_out() -> None:
    booted = CommandLine.parse(sampled.argv("vcpu-current"))
    xml = with_vcpus(FIRST, SECOND.format("yes")).replace("current='1'", "current='2'")
    plugged = reconciled(xml, booted).line
    devices = [json.loads(option.argument) for option in plugged.named("device") if option not in booted.options]
    assert devices == [{"driver": "qemu64-x86_64-cpu", "id": "vcpu1", "socket-id": 1, "core-id": 0, "thread-id": 0}]
    assert (plugged.vcpus, changed_since_boot(xml, plugged), blockers(plugged)) == (2, (), ())
    out = with_vcpus(FIRST, SECOND.format("no"))
    assert reconciled(out, plugged).line == booted
    assert changed_since_boot(out, booted) == ()


DRIVE = """<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>{source}
<target dev='sda' bus='sata'/><readonly/><alias name='sata0-0-0'/>
<address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>"""


@pytest.mark.parametrize("booted_with_a_medium", [False, True])
def test_another_medium_and_none(booted_with_a_medium: bool) -> None:
    drive: dict[str, object] = {"driver": "ide-cd", "bus": "ide.0", "id": "sata0-0-0"}
    nodes = (
        {"driver": "file", "filename": "/a.iso", "node-name": "libvirt-5-storage", "read-only": True},
        {"node-name": "libvirt-5-format", "read-only": True, "driver": "raw", "file": "libvirt-5-storage"},
    )
    if booted_with_a_medium:
        drive["drive"] = "libvirt-5-format"
    blockdevs = [word for node in nodes for word in ("-blockdev", json.dumps(node))] if booted_with_a_medium else []
    line = CommandLine.parse([*sampled.argv("q35-plain"), *blockdevs, "-device", json.dumps(drive)])
    plain = sampled.xml("q35-plain")

    def with_medium(source: str) -> str:
        return plain.replace("</devices>", DRIVE.format(source=source) + "</devices>")

    for source, name in (("<source file='/b.iso' index='6'/>", "/b.iso"), ("<source index='7'/>", ""), ("", "")):
        xml = with_medium(source)
        found = reconciled(xml, line).line
        assert changed_since_boot(xml, found) == ()
        (device,) = found.named("device", "ide-cd")
        assert device.get("drive") == ("libvirt-6-format" if name else "")
        images = {node.filename: node.read_only for node in found.block_nodes() if node.filename.endswith(".iso")}
        assert list(images) == ([name] if name else [])
        assert all(node.read_only for node in found.block_nodes() if node.name == "libvirt-6-format")


def test_a_copy_that_goes_on_stays_named() -> None:
    assert changed_since_boot(sampled.xml("commit-mirror"), now("commit-mirror"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<model type='virtio'/>\n      <alias name='net1'/>", "<model type='e1000'/>\n      <alias name='net1'/>"),
        ("<alias name='net1'/>", "<alias name='net1'/><mtu size='9000'/>"),
        ("<domain type='qemu'", "<domain type='kvm'"),
        ("<alias name='net1'/>", "<driver name='qemu' queues='4'/><alias name='net1'/>"),
    ],
)
def test_a_card_that_is_not_plain_stays_named(old: str, new: str) -> None:
    xml = sampled.xml("hot-nic")
    assert old in xml
    changed = xml.replace(old, new)
    line = reconciled(changed, CommandLine.parse(sampled.argv("hot-nic"))).line
    assert [item.found for item in changed_since_boot(changed, line)] == ["interface net1, added since"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<target dev='vdh' bus='virtio'/>", "<target dev='sdh' bus='scsi'/>"),
        ("<alias name='virtio-disk7'/>", "<alias name='virtio-disk7'/><serial>7</serial>"),
        (
            "<driver name='qemu' type='qcow2'/>\n      <source file='/var/lib/libvirt/images/hot",
            "<driver name='qemu' type='qcow2' cache='none'/>\n      <source file='/var/lib/libvirt/images/hot",
        ),
    ],
)
def test_a_disk_that_is_not_plain_stays_named(old: str, new: str) -> None:
    xml = sampled.xml("hot-nic")
    assert old in xml
    changed = xml.replace(old, new)
    line = reconciled(changed, CommandLine.parse(sampled.argv("hot-nic"))).line
    assert "disk virtio-disk7, added since" in [item.found for item in changed_since_boot(changed, line)]

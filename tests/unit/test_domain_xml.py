"""libvirt's live XML: what it says, what changed since boot, and the guest that a rehearsal starts."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import sampled

from hostagent.arguments.command_line import CommandLine
from hostagent.errors import Refused
from hostagent.facts import RamBacking
from hostagent.hypervisor.domain_xml import (
    PlaceholderDisk,
    changed_since_boot,
    live_differences,
    read_definition,
    rehearsal_xml,
    shape_digest,
)

UUID = "11111111-2222-3333-4444-555555555555"


def edited(name: str, change: Callable[[Element], object]) -> str:
    root = ElementTree.fromstring(sampled.xml(name))
    change(root)
    return ElementTree.tostring(root, encoding="unicode")


def found(root: Element, path: str) -> Element:
    element = root.find(path)
    assert element is not None, path
    return element


def with_element(path: str, xml: str) -> str:
    """q35-rich with one more element."""
    return edited("q35-rich", lambda root: found(root, path).append(ElementTree.fromstring(xml)))


# -- reading


def test_a_definition() -> None:
    seen = read_definition(sampled.xml("q35-rich"))
    assert (seen.machine, seen.emulator) == ("pc-q35-7.2", "/usr/bin/qemu-system-x86_64")
    assert (seen.vcpus, seen.memory, seen.virtualisation) == (2, 256 * 1024**2, "qemu")
    assert (seen.ram, seen.ram_discard, seen.on_reboot) == (RamBacking.SHARED_FILE, False, "restart")
    assert seen.features == frozenset()
    devices = {device.alias: device for device in seen.devices}
    assert (devices["virtio-disk2"].source, devices["virtio-disk2"].detail) == (
        "/var/lib/libvirt/images/top.qcow2",
        "vdc",
    )
    assert devices["virtio-disk2"].marks == {"backing-chain"}
    assert (devices["net0"].kind, devices["net0"].source, devices["net0"].detail) == (
        "bridge",
        "br0",
        "virtio",
    )
    assert devices["channel1"].source == "/var/lib/libvirt/qemu/own.sock"
    assert devices["rng0"].kind == "random"


@pytest.mark.parametrize(
    ("backing", "ram"),
    [
        ("<source type='file'/><access mode='shared'/>", RamBacking.SHARED_FILE),
        ("<source type='file'/>", RamBacking.PRIVATE_FILE),
        ("<source type='file'/><access mode='private'/>", RamBacking.PRIVATE_FILE),
        ("<source type='memfd'/><access mode='shared'/>", RamBacking.MEMFD),
        ("<source type='anonymous'/>", RamBacking.ANONYMOUS),
        ("<hugepages/><source type='file'/><access mode='shared'/>", RamBacking.HUGE_PAGES),
        ("<access mode='shared'/>", RamBacking.UNKNOWN),
        ("", RamBacking.ANONYMOUS),
    ],
)
def test_memory_backings(backing: str, ram: RamBacking) -> None:
    xml = f"<domain><memoryBacking>{backing}</memoryBacking><devices/></domain>"
    assert read_definition(xml).ram is ram


def test_a_definition_without_memory_backing_has_ordinary_ram() -> None:
    assert read_definition("<domain/>").ram is RamBacking.ANONYMOUS
    assert read_definition(sampled.xml("anonymous")).ram is RamBacking.ANONYMOUS
    assert read_definition(sampled.xml("prealloc")).ram_discard


@pytest.mark.parametrize(
    ("path", "xml", "feature"),
    [
        (".", "<numatune/>", "numatune"),
        (".", "<launchSecurity type='sev'/>", "launchSecurity"),
        (".", "<cpu><numa><cell id='0' memAccess='private'/></numa></cpu>", "cpu/numa/cell memAccess"),
        (".", "<devices><memory model='dimm' access='private'/></devices>", "devices/memory access"),
        (".", "<perf/>", "perf"),
        (".", "<memtune><hard_limit>1</hard_limit></memtune>", "memtune/hard_limit"),
        (".", "<cputune><cachetune vcpus='0'/></cputune>", "cputune/cachetune"),
        (".", "<cputune><memorytune vcpus='0'/></cputune>", "cputune/memorytune"),
        (".", "<blkiotune><device/></blkiotune>", "blkiotune/device"),
        ("memoryBacking", "<locked/>", "memoryBacking/locked"),
        (
            ".",
            "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>",
            "qemu:commandline",
        ),
        (".", "<new-in-libvirt-13/>", "new-in-libvirt-13"),
    ],
)
def test_elements_that_nobody_knows_how_to_carry(path: str, xml: str, feature: str) -> None:
    assert read_definition(with_element(path, xml)).features == {feature}


def test_pins_shares_and_the_usual_partition_are_known() -> None:
    assert read_definition(sampled.xml("tuned")).features == frozenset()
    elsewhere = edited("tuned", lambda root: setattr(found(root, "resource/partition"), "text", "/gold"))
    assert read_definition(elsewhere).features == {"resource/partition /gold"}


@pytest.mark.parametrize(
    ("path", "xml", "mark"),
    [
        ("devices/disk", "<iotune><total_iops_sec>9</total_iops_sec></iotune>", "iotune"),
        ("devices/disk", "<throttlefilters/>", "throttling"),
        ("devices/disk", "<shareable/>", "shareable"),
        ("devices/disk", "<transient/>", "transient"),
        ("devices/disk", "<mirror/>", "mirror"),
        ("devices/disk/source", "<slices/>", "slices"),
        ("devices/disk/source", "<reservations managed='yes'/>", "reservations"),
        ("devices/disk/source", "<encryption format='luks'/>", "encryption"),
        ("devices/interface", "<link state='down'/>", "link-down"),
        ("devices/interface", "<bandwidth/>", "bandwidth"),
        ("devices/interface", "<backend type='passt'/>", "passt"),
        ("devices/memballoon", "<stats period='5'/>", "stats"),
    ],
)
def test_marks(path: str, xml: str, mark: str) -> None:
    before = {mark for device in read_definition(sampled.xml("q35-rich")).devices for mark in device.marks}
    after = {mark for device in read_definition(with_element(path, xml)).devices for mark in device.marks}
    assert after - before == {mark}


def test_settings_that_are_off_leave_no_mark() -> None:
    for path, xml in (
        ("devices/interface", "<link state='up'/>"),
        ("devices/memballoon", "<stats period='0'/>"),
    ):
        assert read_definition(with_element(path, xml)) == read_definition(sampled.xml("q35-rich"))


def test_marks_of_attributes() -> None:
    xml = """<domain><devices>
      <graphics type='vnc' passwd='secret'/> <interface type='vhostuser'/> <disk type='nvme'/>
      <interface type='user'/> <tpm model='tpm-crb'><backend type='emulator'/></tpm>
      <filesystem type='mount'><driver type='virtiofs'/></filesystem>
    </devices></domain>"""
    devices = read_definition(xml).devices
    assert [sorted(device.marks) for device in devices] == [
        [],
        ["vhost-user"],
        ["nvme"],
        ["user"],
        [],
        [],
    ]
    assert [device.kind for device in devices][-2:] == ["emulator", "virtiofs"]


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><domain/>", "expected XML without a document type"),
        ("<domain>", "expected well-formed XML"),
        ("<network/>", "expected <domain>, found <network>"),
    ],
)
def test_what_is_no_domain_is_refused(xml: str, expected: str) -> None:
    with pytest.raises(Refused, match=re.escape(expected)):
        read_definition(xml)


# -- what changed since boot


def differences(name: str, xml: str | None = None) -> list[str]:
    line = CommandLine.parse(sampled.argv(name))
    return [f"{item.expected} | {item.found}" for item in changed_since_boot(xml or sampled.xml(name), line)]


UNTOUCHED = sorted(
    {*sampled.ALL}
    - {"hot-nic", "snapshot", "balloon", "commit-mirror"}
    - {"numa-dimms", "numa-out", "numa-ordinary-dimms", "numa-memfd-dimms"}
)


@pytest.mark.parametrize("name", UNTOUCHED)
def test_a_guest_is_as_it_booted(name: str) -> None:
    assert differences(name) == []


@pytest.mark.parametrize("name", sampled.GOOD)
def test_the_second_generation_is_as_it_booted(name: str) -> None:
    second = CommandLine.parse(sampled.argv(name)).handed_over("/b")
    assert changed_since_boot(sampled.xml(name), CommandLine.parse(second.argv)) == ()


HOT_DISK = "only devices that the guest booted with | disk virtio-disk7, added since"
HOT_NIC = "only devices that the guest booted with | interface net1, added since"
IMAGES = "/var/lib/libvirt/images"


def test_real_changes() -> None:
    snapshot = f"disk vda on {IMAGES}/guest27.qcow2, as it booted | {IMAGES}/guest27.s now"
    assert differences("hot-nic") == [HOT_DISK, HOT_NIC]
    assert differences("snapshot") == [HOT_DISK, HOT_NIC, snapshot]
    assert differences("balloon") == differences("snapshot")  # what the balloon has is in the state
    assert differences("commit-mirror") == [
        "disk vda without a block job | a job: active-commit",
        f"disk vda on {IMAGES}/guest28.qcow2, as it booted | {IMAGES}/guest28.s now",
    ]


def remove(root: Element, path: str) -> None:
    found(root, "devices").remove(found(root, path))


def set_attribute(root: Element, path: str, name: str, value: str) -> None:
    found(root, path).set(name, value)


def set_text(root: Element, path: str, value: str) -> None:
    found(root, path).text = value


DISK, CHAINED = "devices/disk[1]", "devices/disk[3]"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: remove(root, "devices/rng"),
            ["device rng0, which the guest booted with | no such device now"],
        ),
        (
            lambda root: remove(root, "devices/interface[3]"),
            ["device net2, which the guest booted with | no such device now"],
        ),
        (
            lambda root: remove(root, CHAINED),
            [
                "device virtio-disk2, which the guest booted with | no such device now",
                f"{IMAGES}/base.qcow2, which the guest booted with | no disk uses it now",
                f"{IMAGES}/top.qcow2, which the guest booted with | no disk uses it now",
            ],
        ),
        (
            lambda root: set_attribute(root, f"{DISK}/source", "file", "/other"),
            [f"disk vda on {IMAGES}/guest5.qcow2 | /other now"],
        ),
        (
            lambda root: set_attribute(root, f"{DISK}/source", "index", "9"),
            [f"disk vda on {IMAGES}/guest5.qcow2, as it booted | {IMAGES}/guest5.qcow2 now"],
        ),
        (
            lambda root: set_attribute(root, f"{DISK}/driver", "type", "raw"),
            ["disk vda in format qcow2, as it booted | it is raw now"],
        ),
        (
            lambda root: found(root, DISK).remove(found(root, f"{DISK}/source")),
            [f"disk vda on {IMAGES}/guest5.qcow2, as it booted | no image now"],
        ),
        (
            lambda root: set_attribute(root, f"{CHAINED}/backingStore/source", "file", "/base2"),
            [f"disk vdc on {IMAGES}/base.qcow2 | /base2 now"],
        ),
        (
            lambda root: found(root, f"{CHAINED}/backingStore").clear(),
            [
                (f"disk vdc with libvirt-4-format below {IMAGES}/top.qcow2, as it booted | nothing is below it now"),
                f"{IMAGES}/base.qcow2, which the guest booted with | no disk uses it now",
            ],
        ),
        (
            lambda root: set_attribute(root, "devices/interface/mac", "address", "52:54:00:00:00:01"),
            ["interface net0 with MAC 52:54:00:77:00:0f, as it booted | MAC 52:54:00:00:00:01 now"],
        ),
        (
            lambda root: set_attribute(root, "vcpu", "current", "1"),
            ["2 vCPUs, as the guest booted | 1 now"],
        ),
        (
            lambda root: set_text(root, "memory", "524288"),
            ["256 MiB of memory, as the guest booted | 512 MiB now"],
        ),
        (lambda root: set_text(root, "iothreads", "3"), ["2 iothreads, as the guest booted | 3 now"]),
    ],
)
def test_every_change_is_named(change: Callable[[Element], None], said: list[str]) -> None:
    assert sorted(differences("q35-rich", edited("q35-rich", change))) == sorted(said)


@pytest.mark.parametrize(
    "xml",
    [
        "<memory model='dimm'><alias name='dimm0'/></memory>",
        "<controller type='scsi' index='0'><alias name='scsi0'/></controller>",
        "<controller type='sata' index='1'><alias name='sata1'/></controller>",
        "<input type='tablet' bus='usb'><alias name='input3'/></input>",
        "<hostdev mode='subsystem' type='usb'><alias name='hostdev0'/></hostdev>",
    ],
)
def test_a_hotplugged_device_is_named(xml: str) -> None:
    element = ElementTree.fromstring(xml)
    alias = found(element, "alias").get("name")
    expected = f"only devices that the guest booted with | {element.tag} {alias}, added since"
    assert differences("q35-rich", with_element("devices", xml)) == [expected]


def test_a_raw_disk_without_a_format_node_is_as_it_booted() -> None:
    """So libvirt 11.3 writes it; the live XML is that of 9.0."""
    argv = [
        *("qemu", "-m", "size=262144k", "-smp", "1,sockets=1"),
        "-blockdev",
        '{"driver":"file","filename":"/d","node-name":"libvirt-1-storage","read-only":false}',
        *("-device", '{"driver":"virtio-blk-pci","drive":"libvirt-1-storage","id":"virtio-disk0"}'),
    ]
    xml = """<domain><memory>262144</memory><vcpu>1</vcpu><devices><disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='/d' index='1'/><backingStore/>
      <target dev='vda'/><alias name='virtio-disk0'/></disk></devices></domain>"""
    assert changed_since_boot(xml, CommandLine.parse(argv)) == ()


# -- before and after


def test_a_guest_does_not_differ_from_itself() -> None:
    for name in sampled.ALL:
        assert live_differences(sampled.xml(name), sampled.xml(name)) == ()


def test_what_a_handover_changes_is_explained() -> None:
    def after(root: Element) -> None:
        set_text(root, "devices/emulator", "/var/lib/hostagent/qemu/10.0.2/usr/bin/qemu-system-x86_64")
        set_attribute(root, "devices/channel/target", "state", "connected")

    assert live_differences(sampled.xml("q35-rich"), edited("q35-rich", after)) == ()


def test_what_else_differs_is_named() -> None:
    def after(root: Element) -> None:
        root.set("id", "6")
        remove(root, "devices/rng")
        set_attribute(root, f"{DISK}/source", "file", "/other")
        found(root, DISK).append(ElementTree.fromstring("<iotune><read_iops_sec>1</read_iops_sec></iotune>"))

    assert live_differences(sampled.xml("q35-rich"), edited("q35-rich", after)) == (
        "domain@id: expected '5', found '6'",
        f"domain/devices/disk[virtio-disk0]/source@file: expected '{IMAGES}/guest5.qcow2', found '/other'",
        "domain/devices/rng[rng0]: expected it, found nothing",
        "domain/devices/disk[virtio-disk0]/iotune: expected nothing, found it",
    )


# -- the rehearsal


@pytest.mark.parametrize("name", sampled.ALL)
def test_a_rehearsal_touches_nothing_of_the_guests(name: str) -> None:
    live = sampled.xml(name)
    xml = rehearsal_xml(live, "hostagent-rehearsal", UUID, "/run/hostagent/rehearsal").xml
    root = ElementTree.fromstring(xml)
    assert (root.findtext("name"), root.findtext("uuid"), root.get("id")) == (
        "hostagent-rehearsal",
        UUID,
        None,
    )
    pieces = max(1, len(root.findall("cpu/numa/cell"))) + len(root.findall("devices/memory"))
    assert {root.findtext("memory"), root.findtext("currentMemory")} == {str(pieces * 131072)}
    sizes = [size.text for size in root.iterfind("devices/memory/target/size")]
    sizes += [cell.get("memory") for cell in root.iterfind("cpu/numa/cell")]
    assert sizes == ["131072"] * len(sizes)
    assert {nic.get("type") for nic in root.iterfind("devices/interface")} <= {"ethernet"}
    assert root.findall("devices/interface/mac") == root.findall("devices/interface/target") == []
    paths = {
        value
        for element in root.iterfind("devices/*")
        for child in element.iter()
        for value in [*child.attrib.values(), child.text or ""]
        if value.startswith("/")
    }
    allowed = {"/dev/urandom", root.findtext("devices/emulator")}
    assert all(path.startswith("/run/hostagent/rehearsal/") for path in paths - allowed), paths
    for gone in ("os/kernel", "os/initrd", "os/cmdline", "seclabel", "resource", "cputune", "metadata"):
        assert root.find(gone) is None
    for kept in ("os/type", "cpu", "features", "clock", "memoryBacking"):
        before = ElementTree.fromstring(live).find(kept)
        shown = None if before is None else ElementTree.tostring(before).strip()
        assert (None if root.find(kept) is None else ElementTree.tostring(found(root, kept)).strip()) == shown


def test_a_rehearsal_s_dimms_do_not_lie_on_top_of_each_other() -> None:
    xml = (
        sampled.xml("numa-dimms").replace(">262144</size>", ">65536</size>").replace(">131072</size>", ">65536</size>")
    )
    xml = xml.replace("base='0x110000000'", "base='0x104000000'")
    root = ElementTree.fromstring(rehearsal_xml(xml, "r", UUID, "/r").xml)
    assert [size.text for size in root.iterfind("devices/memory/target/size")] == ["65536", "65536"]
    assert root.findtext("memory") == str(2 * 131072 + 2 * 65536)


def test_a_rehearsal_has_the_same_devices() -> None:
    def devices(xml: str) -> list[tuple[str, str, str]]:
        root = ElementTree.fromstring(xml)
        return [
            (
                device.tag,
                device.findtext("alias", found(device, "alias").get("name", ""))
                if device.find("alias") is not None
                else "",
                str(sorted(found(device, "address").items())) if device.find("address") is not None else "",
            )
            for device in root.iterfind("devices/*")
        ]

    for name in sampled.GOOD:
        assert devices(rehearsal_xml(sampled.xml(name), "r", UUID, "/w").xml) == devices(sampled.xml(name))


def test_the_disks_to_make() -> None:
    guest = rehearsal_xml(sampled.xml("q35-rich"), "r", UUID, "/w")
    assert guest.disks == (
        PlaceholderDisk("/w/vda.qcow2", "qcow2", 16 * 1024**2),
        PlaceholderDisk("/w/vdb.raw", "raw", 16 * 1024**2),
        PlaceholderDisk("/w/vdc.qcow2", "qcow2", 16 * 1024**2),
    )
    root = ElementTree.fromstring(guest.xml)
    assert [source.get("file") for source in root.iterfind("devices/disk/source")] == [
        disk.path for disk in guest.disks
    ]
    driver = found(root, "devices/disk[2]/driver")
    assert driver.attrib == {
        "name": "qemu",
        "type": "raw",
        "cache": "none",
        "io": "native",
        "discard": "unmap",
        "iothread": "1",
        "queues": "2",
    }


def test_an_empty_drive_stays_empty() -> None:
    guest = rehearsal_xml(sampled.xml("misc"), "r", UUID, "/w")
    assert [disk.path for disk in guest.disks] == ["/w/vda.qcow2"]


def test_names_that_need_escapes_do_not_break_the_xml() -> None:
    name = """a 'b' "c", ü & <d>"""
    guest = rehearsal_xml(sampled.xml("pc-2cpu"), name, UUID, f"/w/{name}")
    root = ElementTree.fromstring(guest.xml)
    assert root.findtext("name") == name
    assert found(root, "devices/disk/source").get("file") == guest.disks[0].path == f"/w/{name}/vda.qcow2"


def test_devices_of_the_hosts_are_not_in_a_rehearsal() -> None:
    for xml in ("<hostdev mode='subsystem' type='pci'/>", "<filesystem/>", "<tpm/>", "<vsock/>"):
        live = with_element("devices", xml)
        assert rehearsal_xml(live, "r", UUID, "/w") == rehearsal_xml(sampled.xml("q35-rich"), "r", UUID, "/w")


# -- the shape


def test_guests_of_one_shape_rehearse_once() -> None:
    def other(root: Element) -> None:
        set_text(root, "name", "another")
        set_text(root, "uuid", UUID)
        set_text(root, "memory", "1048576")
        set_text(root, "currentMemory", "1048576")
        set_text(root, "devices/emulator", "/opt/qemu")
        set_attribute(root, f"{DISK}/source", "file", "/another.qcow2")
        set_attribute(root, "devices/interface/mac", "address", "52:54:00:00:00:01")
        set_attribute(root, "devices/interface/source", "bridge", "br7")
        set_attribute(root, "devices/interface", "type", "network")
        set_text(root, "os/cmdline", "quiet")
        set_text(root, "devices/disk/serial", "X")
        root.set("id", "77")

    assert shape_digest(edited("q35-rich", other)) == shape_digest(sampled.xml("q35-rich"))
    assert shape_digest(sampled.xml("tuned")) == shape_digest(sampled.xml("q35-plain"))


def test_the_rehearsals_guest_has_the_shape_it_rehearses() -> None:
    for name in sampled.ALL:
        rehearsal = rehearsal_xml(sampled.xml(name), "r", UUID, "/w").xml
        assert shape_digest(rehearsal) == shape_digest(sampled.xml(name))


def test_the_order_of_devices_is_not_part_of_the_shape() -> None:
    def reordered(root: Element) -> None:
        devices = found(root, "devices")
        devices[:] = list(devices)[::-1]

    assert shape_digest(edited("q35-rich", reordered)) == shape_digest(sampled.xml("q35-rich"))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: set_text(root, "vcpu", "4"),
        lambda root: set_attribute(root, "os/type", "machine", "pc-q35-7.1"),
        lambda root: set_attribute(root, "devices/interface/model", "type", "e1000e"),
        lambda root: set_attribute(root, f"{DISK}/target", "bus", "scsi"),
        lambda root: set_attribute(root, f"{DISK}/driver", "type", "raw"),
        lambda root: set_attribute(root, "devices/rng/address", "slot", "0x09"),
        lambda root: remove(root, "devices/rng"),
        lambda root: found(root, "features").append(Element("pae")),
        lambda root: set_text(root, "cpu/model", "EPYC"),
        lambda root: set_text(root, "iothreads", "1"),
    ],
)
def test_what_is_part_of_the_shape(change: Callable[[Element], None]) -> None:
    assert shape_digest(edited("q35-rich", change)) != shape_digest(sampled.xml("q35-rich"))


def test_the_samples_are_all_there() -> None:
    assert {*sampled.GOOD} <= {*sampled.ALL}
    assert len(sampled.ALL) == len(list(Path(sampled.SAMPLES).glob("*.argv.json")))


def test_a_pseudo_terminal_and_an_empty_drive_may_be_said_anew() -> None:
    before = """<domain><devices>
      <serial type='pty'><source path='/dev/pts/1'/><alias name='serial0'/></serial>
      <console type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/><alias name='serial0'/></console>
      <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source index='6'/><alias name='sata0'/></disk>
    </devices></domain>"""
    after = """<domain><devices>
      <serial type='pty'><source path='/dev/pts/2'/><alias name='serial0'/></serial>
      <console type='pty' tty='/dev/pts/2'><source path='/dev/pts/2'/><alias name='serial0'/></console>
      <disk type='file' device='cdrom'><driver name='qemu'/><alias name='sata0'/></disk>
    </devices></domain>"""
    assert live_differences(before, after) == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<serial type='file'><source path='/a'/></serial>", "<serial type='file'><source path='/b'/></serial>"),
        (
            "<disk type='file'><driver type='raw'/><source file='/a' index='1'/></disk>",
            "<disk type='file'><driver type='qcow2'/><source file='/a' index='1'/></disk>",
        ),
    ],
)
def test_a_file_and_a_disk_with_an_image_may_not(before: str, after: str) -> None:
    differences = live_differences(
        f"<domain><devices>{before}</devices></domain>", f"<domain><devices>{after}</devices></domain>"
    )
    assert len(differences) == 1

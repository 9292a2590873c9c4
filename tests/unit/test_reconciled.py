"""Argument lists of guests that were changed while they ran, brought up to what they are now."""

import json

import pytest
import sampled

from hostagent.arguments.command_line import CPU_DEVICE, DIMM, CommandLine, blockers
from hostagent.arguments.qemu_options import Property
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


# -- memory


MEMORY = ("numa-dimms", "numa-out", "numa-ordinary-dimms", "numa-memfd-dimms")


def memory_of(line: CommandLine) -> list[tuple[str, ...]]:
    """Each DIMM with its backend."""
    backends = {item.get("id"): item for item in line.named("object")}
    dimms = [(item, backends[item.get("memdev")]) for item in line.named("device", DIMM)]
    return [
        (
            device.get("id"),
            *(device.get(name) for name in ("slot", "node", "addr")),
            *(backend.get(name) for name in ("size", "qom-type")),
        )
        for device, backend in dimms
    ]


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_was_plugged_in_leaves_nothing_to_name(name: str) -> None:
    assert changed_since_boot(sampled.xml(name), now(name)) == ()
    assert blockers(now(name)) == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("numa-dimms", "memory-backend-file"),
        ("numa-ordinary-dimms", "memory-backend-ram"),
        ("numa-memfd-dimms", "memory-backend-memfd"),
    ],
)
def test_it_is_where_the_guest_sees_it_and_of_the_kind_of_the_rest(name: str, kind: str) -> None:
    assert memory_of(now(name)) == [
        ("dimm0", "0", "1", str(0x100000000), str(256 << 20), kind),
        ("dimm1", "1", "0", str(0x110000000), str(128 << 20), kind),
    ]
    plugged = [item for item in now(name).named("device") if item.kind.endswith(CPU_DEVICE)]
    assert [(item.get("id"), item.get("node-id")) for item in plugged] == [("vcpu2", "0")]


def test_it_is_written_as_for_a_guest_that_boots_with_it() -> None:
    """But for the address, which libvirt leaves to QEMU then."""
    booted = CommandLine.parse(sampled.argv("numa-booted"))
    without = [item for item in booted.options if "dimm0" not in (item.get("id"), item.get("id").removeprefix("mem"))]
    again = reconciled(sampled.xml("numa-booted"), CommandLine("q", tuple(without))).line
    assert [item for item in again.options if item.name == "object"] == list(booted.named("object"))
    (device,) = booted.named("device", DIMM)
    (found,) = again.named("device", DIMM)
    assert found.properties == (*device.properties, Property("addr", str(0x100000000)))
    assert again.options.index(found) == booted.options.index(device)


def test_memory_that_was_plugged_out_is_gone_and_what_is_left_stays_where_it_is() -> None:
    line = reconciled(sampled.xml("numa-out"), now("numa-dimms")).line
    assert memory_of(line) == [("dimm1", "1", "0", str(0x110000000), str(128 << 20), "memory-backend-file")]
    assert [item.get("id") for item in line.named("object") if "dimm" in item.get("id")] == ["memdimm1"]
    assert line.memory == (256 + 128) << 20


def test_other_memory_under_the_same_name() -> None:
    xml = sampled.xml("numa-dimms").replace(">262144</size>", ">524288</size>").replace(">655360<", ">917504<")
    assert "524288" in xml
    line = reconciled(xml, now("numa-dimms")).line
    assert [found[4] for found in memory_of(line)] == [str(512 << 20), str(128 << 20)]
    assert changed_since_boot(xml, line) == ()


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("<memory model='dimm'>", "<memory model='dimm' discard='yes'>", "memory dimm0, added since"),
        ("<memory model='dimm'>", "<memory model='nvdimm'>", "memory dimm0, added since"),
        ("<node>1</node>", "<node>1</node><label><size>1</size></label>", "memory dimm0, added since"),
        ("<target>", "<source><nodemask>1</nodemask></source><target>", "memory dimm0, added since"),
    ],
)
def test_memory_that_is_not_plain_stays_named(old: str, new: str, found: str) -> None:
    xml = sampled.xml("numa-dimms").replace(old, new, 1)
    line = reconciled(xml, CommandLine.parse(sampled.argv("numa-dimms"))).line
    assert found in [item.found for item in changed_since_boot(xml, line)]


def test_memory_with_a_name_of_its_owner_s_is_where_libvirt_puts_it() -> None:
    xml = sampled.xml("numa-dimms").replace("<alias name='dimm1'/>", "<alias name='ua-more'/>")
    line = reconciled(xml, CommandLine.parse(sampled.argv("numa-dimms"))).line
    paths = {ram.id: ram.path.rpartition("/")[2] for ram in line.ram_backends()}
    assert paths == {"ram-node0": "ram-node0", "ram-node1": "ram-node1", "memdimm0": "dimm0", "memua-more": "ua-more"}


def test_memory_that_is_not_plain_and_that_it_booted_with_stays_where_it_is() -> None:
    """The place of the first one is free: QEMU would put it there if it were not told."""
    xml = sampled.xml("numa-booted").replace("<memory model='dimm'>", "<memory model='dimm' access='shared'>")
    assert "access='shared'" in xml
    line = reconciled(xml, CommandLine.parse(sampled.argv("numa-booted"))).line
    assert [device.get("addr") for device, _ in line.dimms()] == [str(0x100000000)]


@pytest.mark.parametrize("name", ["numa", "numa-ordinary-dimms", "numa-memfd-dimms"])
def test_all_of_it_goes_to_files_that_libvirt_would_have_made(name: str) -> None:
    folder = "/ram/libvirt/qemu/1-numa"
    adopted = now(name).handed_over("/q", folder)
    assert adopted.nameless_ram() == ()
    found = {ram.id: ram.path.removeprefix(f"{folder}/") for ram in adopted.ram_backends()}
    if name != "numa":
        assert found == {"ram-node0": "ram-node0", "ram-node1": "ram-node1", "memdimm0": "dimm0", "memdimm1": "dimm1"}
    assert blockers(adopted) == ()


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
    ("driver", "vhosts", "by_kernel"),
    [("", 1, True), ("", 0, False), ("qemu", 0, False), ("vhost", 1, True)],
)
def test_who_carries_the_packets_of_a_card_under_kvm(driver: str, vhosts: int, by_kernel: bool) -> None:
    """The definition need not say; its QEMU has a descriptor for it if it is the kernel."""
    xml = under_kvm(driver)
    found = reconciled(xml, CommandLine.parse(sampled.argv("hot-nic")), vhosts)
    (netdev,) = (item for item in found.line.named("netdev") if item.get("id") == "hostnet1")
    assert (netdev.get("fd"), netdev.get("vhost"), netdev.get("vhostfd")) == (
        ("32", "on", "33") if by_kernel else ("32", "", "")
    )
    assert (changed_since_boot(xml, found.line), blockers(found.line)) == ((), ())
    assert reconciled(xml, found.line, vhosts).line == found.line


@pytest.mark.parametrize(("driver", "vhosts"), [("", 2), ("qemu", 1), ("vhost", 0)])
def test_a_card_that_nobody_knows_enough_about_stays_named(driver: str, vhosts: int) -> None:
    xml = under_kvm(driver)
    line = reconciled(xml, CommandLine.parse(sampled.argv("hot-nic")), vhosts).line
    assert [item.found for item in changed_since_boot(xml, line)] == ["interface net1, added since"]


def under_kvm(driver: str) -> str:
    """The guest with the card, as if it had KVM; `driver` is what its definition says of the card's."""
    xml = sampled.xml("hot-nic").replace("<domain type='qemu'", "<domain type='kvm'")
    said = f"<driver name='{driver}'/>" if driver else ""
    return xml.replace("<alias name='net1'/>", f"{said}<alias name='net1'/>")


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


# -- what would be another guest ---------------------------------------------------------------------------------


def changed(name: str, *words: tuple[str, str]) -> tuple[str, list[str]]:
    """A sample's live XML and argument list, with words of both replaced."""
    xml, argv = sampled.xml(name), list(now(name).argv)
    for old, new in words:
        assert old in xml or any(old in word for word in argv)
        xml, argv = xml.replace(old, new), [word.replace(old, new) for word in argv]
    return xml, argv


@pytest.mark.parametrize("slot", ["0x00", "0x03"])
def test_another_disk_under_the_same_name_does_not_get_the_first_one_s_properties(slot: str) -> None:
    """It was plugged out and another in: whether that has the same serial number, queues or slot, nobody knows."""
    xml, argv = changed("hot-nic", ('"id":"virtio-disk7"', '"id":"virtio-disk7","serial":"first"'))
    xml = xml.replace("hot.qcow2' index='2'", "second.qcow2' index='9'")
    xml = xml.replace("bus='0x07' slot='0x00'", f"bus='0x07' slot='{slot}'")
    line = reconciled(xml, CommandLine.parse(argv)).line
    assert changed_since_boot(xml, line)


def test_a_device_in_another_place_is_named() -> None:
    xml = sampled.xml("hot-before").replace("bus='0x01' slot='0x00'", "bus='0x01' slot='0x05'")
    assert xml != sampled.xml("hot-before")
    assert changed_since_boot(xml, now("hot-before"))


def test_an_image_on_top_is_cached_and_discards_as_the_one_below() -> None:
    """libvirt gives every image of a disk the same cache mode, and says so to whoever asks if it may migrate."""
    mode = '"cache":{"direct":true,"no-flush":false}'
    argv = [
        word.replace('"discard":"unmap"', f'"discard":"unmap",{mode}').replace(
            '"driver":"qcow2"', f'"discard":"unmap","detect-zeroes":"unmap",{mode},"driver":"qcow2"'
        )
        for word in sampled.argv("snapshot")
    ]
    line = reconciled(sampled.xml("snapshot"), CommandLine.parse(argv)).line
    nodes = {item.get("node-name"): item for item in line.named("blockdev")}
    for name in ("cache.direct", "cache.no-flush", "discard", "detect-zeroes"):
        assert nodes["libvirt-3-format"].get(name) == nodes["libvirt-1-format"].get(name) != "", name
    assert nodes["libvirt-3-storage"].get("cache.direct") == "on"


def test_an_image_in_a_file_above_one_on_a_device_is_a_file() -> None:
    argv = [
        word.replace(
            '"driver":"file","filename":"/var/lib/libvirt/images/guest27.qcow2"',
            '"driver":"host_device","filename":"/dev/vg/guest27"',
        )
        for word in sampled.argv("snapshot")
    ]
    xml = sampled.xml("snapshot").replace(
        "<backingStore type='file' index='1'>", "<backingStore type='block' index='1'>"
    )
    xml = xml.replace("<source file='/var/lib/libvirt/images/guest27.qcow2'/>", "<source dev='/dev/vg/guest27'/>")
    nodes = {node.name: node for node in reconciled(xml, CommandLine.parse(argv)).line.block_nodes()}
    assert nodes["libvirt-1-storage"].driver == "host_device"
    assert nodes["libvirt-3-storage"].driver == "file"


def test_a_raw_image_below_another_is_not_written_to() -> None:
    """libvirt 10 gives a raw image no format node: what says read-only is on its storage then."""
    argv = sampled.argv("snapshot")
    at = next(n for n, word in enumerate(argv) if '"node-name":"libvirt-1-format"' in word)
    argv = [
        word.replace("libvirt-1-format", "libvirt-1-storage").replace('"auto-read-only":true', '"read-only":false')
        for word in (*argv[: at - 1], *argv[at + 1 :])
    ]
    xml = sampled.xml("snapshot").replace("<format type='qcow2'/>", "<format type='raw'/>", 1)
    line = reconciled(xml, CommandLine.parse(argv)).line
    nodes = {node.name: node for node in line.block_nodes()}
    assert nodes["libvirt-3-format"].backing == "libvirt-1-storage"
    assert nodes["libvirt-1-storage"].read_only


HOT_DISK = (
    "<disk type='file' device='disk'>\n      <driver name='qemu' type='qcow2'/>\n"
    "      <source file='/var/lib/libvirt/images/hot.qcow2' index='2'/>"
)
METADATA = "<driver name='qemu' type='qcow2'><metadata_cache><max_size>1</max_size></metadata_cache></driver>"
SLICE = "index='2'><slices><slice type='storage' offset='4096' size='65536'/></slices></source>"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("device='disk'>", "device='disk' model='virtio-transitional'>"),
        ("index='2'/>", SLICE),
        ("<driver name='qemu' type='qcow2'/>", METADATA),
    ],
)
def test_a_plugged_disk_with_more_to_it_stays_named(old: str, new: str) -> None:
    xml = sampled.xml("hot-nic")
    assert HOT_DISK in xml
    xml = xml.replace(HOT_DISK, HOT_DISK.replace(old, new))
    line = reconciled(xml, CommandLine.parse(sampled.argv("hot-nic"))).line
    assert "disk virtio-disk7, added since" in [item.found for item in changed_since_boot(xml, line)]


def test_a_filter_above_the_images_stays_named() -> None:
    """<driver copy_on_read='on'>: nobody has tried it, and the list must not lose it unsaid."""
    node = '{"driver":"copy-on-read","node-name":"libvirt-CoR-vda","file":"libvirt-1-format"}'
    argv = sampled.argv("hot-before")
    at = next(n for n, word in enumerate(argv) if '"drive":"libvirt-1-format"' in word)
    argv[at] = argv[at].replace('"drive":"libvirt-1-format"', '"drive":"libvirt-CoR-vda"')
    argv[at - 1 : at - 1] = ["-blockdev", node]
    line = reconciled(sampled.xml("hot-before"), CommandLine.parse(argv)).line
    assert list(line.argv) == argv
    assert blockers(line)


def test_firmware_images_stay_in_the_list() -> None:
    argv = [
        *sampled.argv("hot-before"),
        "-blockdev",
        '{"driver":"file","filename":"/usr/share/OVMF/OVMF_CODE.fd","node-name":"libvirt-pflash0-storage"}',
    ]
    assert list(reconciled(sampled.xml("hot-before"), CommandLine.parse(argv)).line.argv) == argv

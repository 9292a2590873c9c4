"""The argument list: read without loss, judged with words, turned into the new QEMU's."""

import json

import pytest
import sampled
from hypothesis import given
from hypothesis import strategies as st

from hostagent.arguments.command_line import (
    BlockNode,
    CommandLine,
    DescriptorKind,
    DescriptorUse,
    RamBackend,
    blockers,
)
from hostagent.arguments.qemu_options import Property, join_list, read_options, split_list
from hostagent.hypervisor.changed_since_boot import changed_since_boot
from hostagent.plan import Reason

# As libvirt 11.3 writes it for QEMU 10: sizes with units, no format node for raw images, -machine hpet=.
LIBVIRT_11 = [
    "/usr/bin/qemu-system-x86_64",
    *("-name", "guest=web,debug-threads=on", "-S"),
    *(
        "-object",
        '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/lib/domain-1-web/master-key.aes"}',
    ),
    *("-machine", "pc-q35-10.0,usb=off,dump-guest-core=off,memory-backend=pc.ram,hpet=off,acpi=on"),
    *("-accel", "kvm", "-cpu", "host,migratable=on", "-m", "size=524288k"),
    "-object",
    (
        '{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/ram/1-web/pc.ram","share":true,'
        '"x-use-canonical-path-for-ramblock-id":false,"size":536870912}'
    ),
    *("-overcommit", "mem-lock=off", "-smp", "4,sockets=1,dies=1,clusters=1,cores=2,threads=2"),
    *("-uuid", "1b826c23-8767-47ad-a6b5-c83a88277f71", "-display", "none", "-no-user-config", "-nodefaults"),
    *("-chardev", "socket,id=charmonitor,fd=29,server=on,wait=off"),
    *("-mon", "chardev=charmonitor,id=monitor,mode=control", "-rtc", "base=utc,driftfix=slew"),
    *("-global", "kvm-pit.lost_tick_policy=delay", "-no-shutdown", "-global", "ICH9-LPC.disable_s3=1"),
    *("-boot", "strict=on"),
    *(
        "-device",
        '{"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0","addr":"0x2"}',
    ),
    "-blockdev",
    (
        '{"driver":"host_device","filename":"/dev/vg/web","node-name":"libvirt-1-storage","read-only":false,'
        '"discard":"unmap","cache":{"direct":true,"no-flush":false}}'
    ),
    "-device",
    (
        '{"driver":"virtio-blk-pci","bus":"pci.1","addr":"0x0","drive":"libvirt-1-storage","id":"virtio-disk0",'
        '"bootindex":1,"write-cache":"on"}'
    ),
    *("-netdev", '{"type":"tap","fds":"30:31","vhost":true,"vhostfds":"32:33","id":"hostnet0"}'),
    "-device",
    (
        '{"driver":"virtio-net-pci","mq":true,"vectors":6,"netdev":"hostnet0","id":"net0",'
        '"mac":"52:54:00:9a:e6:c6","bus":"pci.2","addr":"0x0"}'
    ),
    *("-add-fd", "set=0,fd=34,opaque=serial0-source"),
    *("-chardev", "file,id=charserial0,path=/dev/fdset/0,append=on"),
    *("-audiodev", '{"id":"audio1","driver":"none"}'),
    *("-global", "ICH9-LPC.noreboot=off", "-watchdog-action", "reset"),
    *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    *("-msg", "timestamp=on"),
]
RAM = (
    "-machine",
    "pc-q35-7.2,memory-backend=pc.ram",
    "-object",
    '{"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/ram/pc.ram","share":true,"size":1}',
)


def found(*words: str) -> list[str]:
    return _said(CommandLine.parse(["qemu", *RAM, *words]))


def _said(line: CommandLine) -> list[str]:
    return [f"{item.reason}: expected {item.expected}, found {item.found}" for item in blockers(line)]


# -- reading


@pytest.mark.parametrize("name", sampled.ALL)
def test_real_lists_come_back_as_they_were(name: str) -> None:
    assert list(CommandLine.parse(sampled.argv(name)).argv) == sampled.argv(name)


@given(st.lists(st.text() | st.sampled_from(["-S", "-device", "-append", "{", '{"driver":"x"}', "-", "--", "a,,b"])))
def test_any_words_come_back_as_they_were(words: list[str]) -> None:
    line = CommandLine.parse(["qemu", *words])
    assert line.argv == ("qemu", *words)
    blockers(line)
    for option in line.options:
        str(option)


NAMES = st.text(alphabet="abcdefghijklmnopqrstuvwxyz-._", min_size=1)


@given(st.lists(st.builds(Property, NAMES, st.text())))
def test_lists_round_trip(properties: list[Property]) -> None:
    assert list(split_list(join_list(properties))) == properties


@given(st.text(min_size=1), st.sampled_from(["-name", "-chardev"]))
def test_a_guests_name_may_hold_anything(name: str, option: str) -> None:
    argument = join_list([Property("guest", name), Property("debug-threads", "on")])
    (read,) = read_options([option, argument])
    assert read.get("guest") == name
    assert read.get("debug-threads") == "on"


@pytest.mark.parametrize(
    ("text", "implied", "properties"),
    [
        ("pc-q35-7.2,usb=off", "type", [("type", "pc-q35-7.2"), ("usb", "off")]),
        ("guest=foo=1,,bar=2,debug-threads=on", "guest", [("guest", "foo=1,bar=2"), ("debug-threads", "on")]),
        ("a,,,b=1", "first", [("first", "a,"), ("b", "1")]),
        ("2,sockets=2", "cpus", [("cpus", "2"), ("sockets", "2")]),
        ("on,obsolete=deny", "enable", [("enable", "on"), ("obsolete", "deny")]),
        ("strict", "", [("strict", "on")]),
        ("a=1,server", "x", [("a", "1"), ("server", "on")]),
        ("path=/a b,x=", "", [("path", "/a b"), ("x", "")]),
        ("", "type", []),
    ],
)
def test_lists_are_read_as_qemu_reads_them(text: str, implied: str, properties: list[tuple[str, str]]) -> None:
    assert [(item.name, item.value) for item in split_list(text, implied=implied)] == properties


@pytest.mark.parametrize(
    ("document", "properties"),
    [
        ({"driver": "raw", "read-only": False}, [("driver", "raw"), ("read-only", "off")]),
        ({"cache": {"direct": True, "no-flush": False}}, [("cache.direct", "on"), ("cache.no-flush", "off")]),
        ({"map": [{"vqs": [1, 3]}]}, [("map.0.vqs.0", "1"), ("map.0.vqs.1", "3")]),
        ({"backing": None, "size": 268435456}, [("backing", "null"), ("size", "268435456")]),
    ],
)
def test_json_reads_into_the_same_names(document: object, properties: list[tuple[str, str]]) -> None:
    (option,) = read_options(["-blockdev", json.dumps(document)])
    assert [(item.name, item.value) for item in option.properties] == properties


def test_the_last_of_two_values_counts_as_in_qemu() -> None:
    (option,) = read_options(["-machine", "pc-q35-7.2,usb=on,usb=off"])
    assert option.get("usb") == "off"


def test_an_unknown_option_takes_a_word_that_is_no_option() -> None:
    names = [(option.name, option.argument) for option in read_options(["-new", "x=1", "-newer", "-S"])]
    assert names == [("new", "x=1"), ("newer", ""), ("S", "")]


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected an argument list"):
        CommandLine.parse([])


# -- what it says


def test_readers() -> None:
    line = CommandLine.parse(sampled.argv("q35-rich"))
    assert (line.binary, line.machine_type, line.accelerator) == (
        "/usr/bin/qemu-system-x86_64",
        "pc-q35-7.2",
        "tcg",
    )
    assert (line.vcpus, line.memory) == (2, 256 * 1024**2)
    assert line.ram_backends() == (
        RamBackend("pc.ram", "/var/lib/libvirt/qemu/ram/libvirt/qemu/5-q35-rich/pc.ram", 256 * 1024**2),
    )
    assert line.iothread_ids() == ("iothread1", "iothread2")
    assert line.chardev_ids() == ("charmonitor", "charserial0", "charchannel0", "charchannel1")
    assert line.netdev_ids() == ("hostnet0", "hostnet1", "hostnet2")
    assert line.device_ids()[-5:] == ("serial0", "channel0", "channel1", "balloon0", "rng0")
    assert line.block_nodes()[-2:] == (
        BlockNode("libvirt-1-storage", "file", "/var/lib/libvirt/images/top.qcow2", "", "", read_only=False),
        BlockNode("libvirt-1-format", "qcow2", "", "libvirt-1-storage", "libvirt-4-format", read_only=False),
    )
    assert next(node for node in line.block_nodes() if node.name == "libvirt-4-format").read_only


def test_descriptors_of_a_real_guest() -> None:
    uses = CommandLine.parse(sampled.argv("q35-rich")).descriptors()
    assert [(use.kind.value, use.owner_id, use.opaque) for use in uses] == [
        ("listener", "charmonitor", ""),
        ("tap", "hostnet0", ""),
        ("tap", "hostnet1", ""),
        ("tap", "hostnet1", ""),
        ("tap", "hostnet2", ""),
        ("fdset", "0", "serial0-source"),
        ("listener", "charchannel0", ""),
        ("listener", "charchannel1", ""),
    ]


def test_descriptors_of_several_queues_and_vhost() -> None:
    assert CommandLine.parse(LIBVIRT_11).descriptors() == (
        DescriptorUse(DescriptorKind.LISTENER, 29, "charmonitor"),
        DescriptorUse(DescriptorKind.TAP, 30, "hostnet0"),
        DescriptorUse(DescriptorKind.TAP, 31, "hostnet0"),
        DescriptorUse(DescriptorKind.VHOST, 32, "hostnet0"),
        DescriptorUse(DescriptorKind.VHOST, 33, "hostnet0"),
        DescriptorUse(DescriptorKind.FDSET, 34, "0", "serial0-source"),
    )


@pytest.mark.parametrize(
    ("argument", "size"),
    [
        ("256", 256 * 1024**2),
        ("size=262144k", 256 * 1024**2),
        ("1G", 1024**3),
        ("size=1T", 1024**4),
        ("size=1.5G", 0),
        ("", 0),
    ],
)
def test_memory_sizes(argument: str, size: int) -> None:
    assert CommandLine.parse(["qemu", "-m", argument]).memory == size


# -- what may be handed over


@pytest.mark.parametrize("name", sampled.GOOD)
def test_nothing_stops_a_plain_guest(name: str) -> None:
    assert blockers(CommandLine.parse(sampled.argv(name))) == ()


def test_nothing_stops_what_libvirt_11_writes() -> None:
    assert blockers(CommandLine.parse(LIBVIRT_11)) == ()


STOPS = """
-spice port=5901
    spice: expected no SPICE display, found -spice
-chardev spicevmc,id=c,name=vdagent
    spice: expected no SPICE channel, found -chardev spicevmc (id c)
-audiodev {"id":"audio1","driver":"spice"}
    spice: expected no SPICE sound, found -audiodev spice (id audio1)
-vnc 127.0.0.1:0,websocket=5700
    option: expected tested properties of -vnc, found -vnc websocket=5700
-vnc localhost:0
    option: expected vnc=an address and a display, or a socket, found -vnc vnc=localhost:0
-display egl-headless
    graphics: expected no graphical display, found -display egl-headless
-device {"driver":"virtio-vga-gl","id":"video0"}
    graphics: expected VGA, cirrus-vga or virtio-vga, found -device virtio-vga-gl (id video0)
-device qxl-vga,id=video0
    spice: expected VGA, cirrus-vga or virtio-vga, found -device qxl-vga (id video0)
-device {"driver":"vfio-pci","host":"0000:06:12.1"}
    passthrough: expected no passed-through device, found -device vfio-pci
-device {"driver":"usb-host","id":"hostdev0"}
    passthrough: expected no passed-through device, found -device usb-host (id hostdev0)
-netdev {"type":"vhost-vdpa","id":"n"}
    passthrough: expected no passed-through device, found -netdev vhost-vdpa (id n)
-device {"driver":"vhost-user-fs-pci","id":"fs0"}
    virtiofs: expected no virtiofs folder, found -device vhost-user-fs-pci (id fs0)
-device {"driver":"vhost-user-blk-pci","id":"d"}
    vhost-user: expected no vhost-user device, found -device vhost-user-blk-pci (id d)
-netdev {"type":"vhost-user","id":"n"}
    vhost-user: expected no vhost-user device, found -netdev vhost-user (id n)
-tpmdev emulator,id=tpm-tpm0,chardev=c
    tpm: expected no TPM, found -tpmdev emulator (id tpm-tpm0)
-device {"driver":"tpm-crb","id":"tpm0"}
    tpm: expected no TPM, found -device tpm-crb (id tpm0)
-netdev {"type":"user","id":"n"}
    user-network: expected a network interface with a tap, found -netdev user (id n)
-netdev {"type":"stream","id":"n"}
    user-network: expected a network interface with a tap, found -netdev stream (id n)
-netdev {"type":"dgram","id":"n"}
    user-network: expected a network interface with a tap, found -netdev dgram (id n)
-object {"qom-type":"sev-guest","id":"s"}
    feature: expected no launch security, found -object sev-guest (id s)
-chardev pty,id=charserial0,logfile=/tmp/x
    option: expected logfile=an fd set, found -chardev pty (id charserial0) logfile=/tmp/x
-cpu max
    option: expected a CPU model that means the same to every QEMU, found -cpu max
-device {"driver":"usb-kbd","id":"i"}
    option: expected a tested -device, found -device usb-kbd (id i)
-device pvpanic
    option: expected a tested -device, found -device pvpanic
-machine q35,usb=off
    option: expected a tested -machine, found -machine q35
-netdev {"type":"bridge","id":"n"}
    option: expected a tested -netdev, found -netdev bridge (id n)
-blockdev {"driver":"rbd","node-name":"x"}
    option: expected a tested -blockdev, found -blockdev rbd (id x)
-numa node,nodeid=0,cpus=0,mem=512
    option: expected tested properties of -numa, found -numa mem=512
-numa cpu
    option: expected type=node or dist, found -numa type=cpu
-device {"driver":"nvdimm","node":0,"memdev":"memnvdimm0","id":"nvdimm0","slot":0}
    option: expected a tested -device, found -device nvdimm (id nvdimm0)
-drive file=/x
    option: expected tested options, found -drive file=/x
-snapshot
    option: expected tested options, found -snapshot
-brand-new
    option: expected tested options, found -brand-new
/disk.img
    option: expected an argument that can be read, found '/disk.img' (a word without an option)
-smp 1,drawers=2
    option: expected tested properties of -smp, found -smp drawers=2
-overcommit mem-lock=on
    option: expected mem-lock=off, found -overcommit mem-lock=on
-rtc base=2024-01-01T00:00:00
    option: expected base=utc or localtime, found -rtc base=2024-01-01T00:00:00
-global virtio-net-pci.mac=x
    option: expected -global known to be carried, found -global virtio-net-pci.mac=x
-watchdog-action pause
    option: expected -watchdog-action reset, found -watchdog-action pause
-cpu EPYC,hv-time=on
    option: expected tested properties of -cpu, found -cpu EPYC hv-time=on
-device {"driver":"virtio-blk-pci","id":"d","share-rw":true}
    option: expected tested properties of -device, found -device virtio-blk-pci (id d) share-rw=on
-chardev socket,id=c,path=/x,server=on,wait=off
    option: expected tested properties of -chardev, found -chardev socket (id c) path=/x
-object {"qom-type":"secret","id":"luks","format":"raw","file":"/k"}
    option: expected id=masterKey0, found -object secret (id luks) id=luks
-blockdev {"driver":"file","node-name":"x","filename":"/dev/fdset/3"}
    option: expected filename=a path, found -blockdev file (id x) filename=/dev/fdset/3
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """Argument lists, each with what is said about it on the next line."""
    lines = [line.strip() for line in table.strip().splitlines()]
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize(("words", "said"), pairs(STOPS))
def test_what_stops_a_handover_is_named(words: str, said: str) -> None:
    assert found(*words.split(" ", 1)) == [said]


def test_broken_json_stops_a_handover() -> None:
    (said,) = found("-device", "{not json")
    assert said.startswith("option: expected an argument that can be read, found '{not json' (not JSON: ")


MEMORY = """
-m 256
    ram-ordinary: expected RAM in a shared file, found -m without a memory backend
-machine pc-q35-7.2,memory-backend=pc.ram
    ram-ordinary: expected RAM in a shared file, found -machine memory-backend=pc.ram without its -object
-object memory-backend-memfd,id=pc.ram,hugetlb=on,size=1
    option: expected tested properties of -object, found -object memory-backend-memfd (id pc.ram) hugetlb=on
-object memory-backend-ram,id=pc.ram,size=1,prealloc=on
    option: expected tested properties of -object, found -object memory-backend-ram (id pc.ram) prealloc=on
-object memory-backend-file,id=pc.ram,mem-path=/r,share=off
    ram-not-shared: expected RAM in a shared file, found -object memory-backend-file (id pc.ram) share=off
-object memory-backend-file,id=pc.ram,mem-path=/r
    ram-not-shared: expected RAM in a shared file, found -object memory-backend-file (id pc.ram), not shared
-object {"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/r","share":true,"discard-data":true}
    ram-discard: expected RAM that its QEMU keeps as it quits, found {file} discard-data=on
-object {"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/r","share":true,"prealloc":true}
    ram-file: expected RAM that is filled as the guest uses it, found {file} prealloc=on
-object {"qom-type":"memory-backend-file","id":"pc.ram","mem-path":"/r","share":true,"pmem":true}
    option: expected pmem=off, found {file} pmem=on
"""


@pytest.mark.parametrize(("words", "said"), pairs(MEMORY))
def test_memory_that_cannot_be_kept_is_named(words: str, said: str) -> None:
    line = CommandLine.parse(["qemu", *words.split(" ", 1)])
    assert _said(line) == [said.replace("{file}", "-object memory-backend-file (id pc.ram)")]


def test_ram_that_is_partly_in_files_is_neither_kept_nor_copied() -> None:
    words = (
        "-object",
        "memory-backend-ram,id=a,size=1",
        "-object",
        "memory-backend-file,id=b,size=1,mem-path=/b,share=on",
    )
    said = "ram-ordinary: expected RAM that is all in files, or none of it, found a without a file"
    assert said in _said(CommandLine.parse(["qemu", *words]))


@pytest.mark.parametrize(
    "words",
    [
        ("-object", "memory-backend-memfd,id=mem,size=4G,share=on", "-numa", "node,memdev=mem"),
        ("-object", "memory-backend-ram,id=m1,size=1G", "-device", "pc-dimm,id=d1,memdev=m1"),
        ("-object", "memory-backend-file,id=f,size=x,mem-path=/f,share=on"),
    ],
)
def test_memory_of_somebody_s_own_words_is_refused_in_words(words: tuple[str, ...]) -> None:
    """As <qemu:commandline> may add it; all guests of the host are read together."""
    line = CommandLine.parse([*sampled.argv("anonymous"), *words])
    assert line.memory >= 256 << 20
    changed_since_boot(sampled.xml("anonymous"), line)
    assert blockers(line)


@pytest.mark.parametrize("name", ["anonymous", "memfd"])
def test_ram_without_a_name_can_be_copied(name: str) -> None:
    line = CommandLine.parse(sampled.argv(name))
    (ram,) = line.nameless_ram()
    assert (ram.id, ram.size) == ("pc.ram", 268435456)
    assert blockers(line) == ()
    assert line.ram_backends() == ()


@pytest.mark.parametrize("name", ["anonymous", "memfd"])
def test_a_copy_is_in_a_file_as_libvirt_would_have_written_it(name: str) -> None:
    folder = "/var/lib/libvirt/qemu/ram/libvirt/qemu/1-q35-plain"
    adopted = CommandLine.parse(sampled.argv(name)).handed_over("/opt/qemu", folder)
    assert adopted.nameless_ram() == ()
    assert blockers(adopted) == ()
    objects = [option.words for option in adopted.named("object", "memory-backend-file")]
    assert objects == [
        option.words for option in CommandLine.parse(sampled.argv("q35-plain")).named("object", "memory-backend-file")
    ]
    before = [option.words for option in CommandLine.parse(sampled.argv(name)).options]
    after = [option.words for option in adopted.options if option.name != "incoming"]
    assert len(before) == len(after)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_a_display_waits_at_a_socket_with_all_that_was_asked_of_it() -> None:
    line = CommandLine.parse(sampled.argv("vnc"))
    assert line.has_display
    first = line.handed_over("/q", display_socket="/lib/domain-1-a,b/t-vnc")
    assert [option.argument for option in first.named("vnc")] == [
        "unix:/lib/domain-1-a,,b/t-vnc,password=on,audiodev=audio1"
    ]
    assert blockers(first) == ()
    second = CommandLine.parse(first.argv).handed_over("/q", display_socket="/next")
    assert [option.argument for option in second.named("vnc")] == ["unix:/next,password=on,audiodev=audio1"]


def test_ram_in_files_is_nothing_to_copy() -> None:
    assert CommandLine.parse(sampled.argv("q35-plain")).nameless_ram() == ()


def test_all_of_it_is_said_not_the_first() -> None:
    reasons = [blocker.reason for blocker in blockers(CommandLine.parse(sampled.argv("spice")))]
    assert reasons == [Reason.SPICE] * 4
    misc = [blocker.found for blocker in blockers(CommandLine.parse(sampled.argv("misc")))]
    assert misc == [
        "-device i6300esb (id watchdog0)",
        "-device pvpanic",
    ]


# -- the new QEMU's list


@pytest.mark.parametrize(
    "name", sorted(set(sampled.ALL) - {"anonymous", "memfd", "vnc", "numa-ordinary-dimms", "numa-memfd-dimms"})
)
def test_the_new_list_is_the_old_one_that_waits(name: str) -> None:
    renamed = {"-no-hpet": ["-machine", "hpet=off"], "-no-acpi": ["-machine", "acpi=off"]}
    old = CommandLine.parse(sampled.argv(name))
    new = old.handed_over("/opt/qemu")
    same = [word for before in old.argv[1:] for word in renamed.get(before, [before])]
    assert list(new.argv) == ["/opt/qemu", *same, "-incoming", "defer"]
    assert new.descriptors() == old.descriptors()


@pytest.mark.parametrize("name", sampled.ALL)
def test_the_third_generation_is_as_the_second(name: str) -> None:
    second = CommandLine.parse(sampled.argv(name)).handed_over("/b")
    read_again = CommandLine.parse(second.argv)
    assert read_again.handed_over("/b") == second
    assert read_again.handed_over("/c").argv == ("/c", *second.argv[1:])


@pytest.mark.parametrize("name", sampled.GOOD)
def test_nothing_stops_the_second_generation(name: str) -> None:
    second = CommandLine.parse(sampled.argv(name)).handed_over("/b", display_socket="/d")
    assert blockers(CommandLine.parse(second.argv)) == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["-S", "-m", "1"], ["-S", "-m", "1", "-incoming", "defer"]),
        (["-m", "1"], ["-m", "1", "-S", "-incoming", "defer"]),
        (["-m", "1", "-S", "-S", "-nodefaults"], ["-m", "1", "-S", "-nodefaults", "-incoming", "defer"]),
        (["-incoming", "fd:3", "-S", "-m", "1"], ["-S", "-m", "1", "-incoming", "defer"]),
        (
            ["-S", "-append", "-incoming", "-m", "1"],
            ["-S", "-append", "-incoming", "-m", "1", "-incoming", "defer"],
        ),
        (["-S", "-no-hpet", "-m", "1"], ["-S", "-machine", "hpet=off", "-m", "1", "-incoming", "defer"]),
        (["-S", "-no-acpi"], ["-S", "-machine", "acpi=off", "-incoming", "defer"]),
    ],
)
def test_what_changes_in_the_new_list(before: list[str], after: list[str]) -> None:
    assert CommandLine.parse(["a", *before]).handed_over("b").argv == ("b", *after)

"""Guests of the fake host, made of real samples (tests/unit)."""

import json
import re
from functools import cache
from pathlib import Path

from hostagent.facts import QemuTree, Version
from hostagent.hypervisor.fake import GuestShape
from hostagent.libvirt_files.capability_cache import flags_of_capability_cache

UNIT = Path(__file__).parents[1] / "unit"
RECORDS, SAMPLES = UNIT / "records", UNIT / "samples"

OLD_CACHE = (RECORDS / "capabilities-qemu-7.2.xml").read_bytes()
NEW_CACHE = (RECORDS / "capabilities-qemu-10.0.xml").read_bytes()


def _tree(name: str, cache: bytes) -> QemuTree:
    read = flags_of_capability_cache(cache)
    return QemuTree(name, read.qemu, read.package, read.emulator)


OLD = _tree("system", OLD_CACHE)
NEW = _tree("10.0.2", NEW_CACHE)
CACHES = {OLD.emulator: OLD_CACHE, NEW.emulator: NEW_CACHE}
assert Version(10, 0) > OLD.version

_RAM = "/var/lib/libvirt/qemu/ram/"
_LIB = "/var/lib/libvirt/qemu/domain-1-"
_CHANNEL = "/var/lib/libvirt/qemu/channel/target/domain-1-"
_ORDINARY = r'{"qom-type":"memory-backend-ram","id":"pc.ram",\1}'
_UUID = re.search(r"<uuid>(.*?)</uuid>", (RECORDS / "q35.xml").read_text())[1]  # type: ignore[index]


@cache
def q35(*, ordinary_ram: bool = False, kvm: bool = False, shared: bool = False, own_disk: bool = False) -> GuestShape:
    """Two vCPUs, a disk, a tap, a console log and an agent."""
    argv = [
        _marked(word, "q35-plain").replace("1,sockets=1,", "2,sockets=2,")
        for word in json.loads((SAMPLES / "q35-plain.argv.json").read_text())
    ]
    record = _marked((RECORDS / "q35.xml").read_text(), "web1")
    for found, marked in (("'74'", "'@PID@'"), ("'81'", "'@VCPU0@'"), ("'82'", "'@VCPU1@'")):
        assert f"pid={found}" in record
        record = record.replace(f"pid={found}", f"pid={marked}")
    live_xml = _marked((SAMPLES / "q35-plain.xml").read_text(), "q35-plain")
    if ordinary_ram:
        record, live_xml = (
            re.sub(r"(?s)\s*<memoryBacking>.*?</memoryBacking>", "", text) for text in (record, live_xml)
        )
        argv = [re.sub(r'.*"memory-backend-file".*("size":\d+).*', _ORDINARY, word) for word in argv]
    if kvm:  # which knows what its guests write
        argv = ["kvm" if word == "tcg" else word for word in argv]
    if shared:  # its files are where peers see them, too
        live_xml = live_xml.replace("/var/lib/libvirt/images", "@ROOT@/images")
    if own_disk:  # but for its disk
        live_xml = live_xml.replace("@ROOT@/images/guest1.qcow2", "@ROOT@/own/@NAME@.qcow2")
    return GuestShape(record, tuple(argv), live_xml, vcpus=2)


def _marked(text: str, name: str) -> str:
    text = text.replace(_RAM + "libvirt/qemu/1-", "@ROOT@/ram/libvirt/qemu/@ID@-")
    text = text.replace(_LIB, "@ROOT@/lib/domain-@ID@-").replace(_CHANNEL, "@ROOT@/lib/domain-@ID@-")
    text = re.sub(r"(<domain type='qemu' id=)'1'", r"\1'@ID@'", text)
    return text.replace(name, "@NAME@").replace(_UUID, "@UUID@")

"""libvirt's capability cache: real files of QEMU 7.2 and 10.0, and when their flags may be recorded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hostagent.facts import Version
from hostagent.libvirt_files.capability_cache import (
    CacheNotUnderstood,
    CapabilityCache,
    Machine,
    cache_file_name,
    flags_blocker,
    flags_of_capability_cache,
)
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.plan import Blocker, Reason

RECORDS = Path(__file__).parent / "records"
DATA = (RECORDS / "capabilities-qemu-7.2.xml").read_bytes()
OLD = flags_of_capability_cache(DATA)
NEW = flags_of_capability_cache((RECORDS / "capabilities-qemu-10.0.xml").read_bytes())
OLD_11 = flags_of_capability_cache((RECORDS / "capabilities-qemu-7.2-libvirt-11.3.xml").read_bytes())
NEW_11 = flags_of_capability_cache((RECORDS / "capabilities-qemu-10.0-libvirt-11.3.xml").read_bytes())
WEB1 = RuntimeRecord.parse((RECORDS / "q35.xml").read_bytes())


def blocker(
    record: RuntimeRecord = WEB1,
    *,
    before: CapabilityCache = OLD,
    after: CapabilityCache = NEW,
    capability_filters: Sequence[str] = (),
) -> Blocker | None:
    return flags_blocker(record, before=before, after=after, capability_filters=capability_filters)


def test_a_cache_file_is_read() -> None:
    assert (OLD.emulator, OLD.qemu, OLD.libvirt) == (
        "/usr/bin/qemu-system-x86_64",
        Version(7, 2, 22),
        Version(9, 0),
    )
    assert (NEW.emulator, NEW.qemu) == ("/opt/qemu-10.0.2/usr/bin/qemu-system-x86_64", Version(10, 0, 2))
    assert OLD.package == "Debian 1:7.2+dfsg-7+deb12u18+b3"
    assert (len(OLD.flags), OLD.flags[0], len(NEW.flags)) == (198, "sdl", 188)
    assert Machine("pc-q35-7.2", "tcg", hotplug_cpus=True) in NEW.machines
    assert OLD.kernel == ""


def test_a_cache_file_of_libvirt_11_is_read() -> None:
    assert (OLD_11.libvirt, OLD_11.qemu, NEW_11.qemu) == (Version(11, 3), OLD.qemu, NEW.qemu)
    assert (len(OLD_11.flags), len(NEW_11.flags)) == (184, 190)
    assert Machine("pc-q35-7.2", "tcg", hotplug_cpus=True) in NEW_11.machines


def test_the_file_is_named_by_the_path() -> None:
    wanted = "926803a9278e445ec919c2b6cbd8c1c449c75b26dcb1686b774314180376c725.xml"
    assert cache_file_name("/usr/bin/qemu-system-x86_64") == wanted


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"qemuCaps>", b"caps>"),
        (b"<version>7002022</version>", b""),
        (b"<version>7002022</version>", b"<version>seven</version>"),
        (b"<selfvers>9000000</selfvers>", b"<selfvers>9000000</selfvers><selfvers>1</selfvers>"),
        (b"<flag name='sdl'/>", b"<flag name='sdl'/><flag name='sdl'/>"),
        (b"<flag name='sdl'/>", b"<flag/>"),
        (b"</emulator>", b""),
    ],
)
def test_another_file_is_refused(right: bytes, wrong: bytes) -> None:
    assert right in DATA
    with pytest.raises(CacheNotUnderstood):
        flags_of_capability_cache(DATA.replace(right, wrong))


@pytest.mark.parametrize("name", ["q35.xml", "q35-reconnected.xml", "pc.xml"])
def test_what_libvirt_recorded_is_what_it_cached(name: str) -> None:
    assert blocker(RuntimeRecord.parse((RECORDS / name).read_bytes())) is None


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("q35-11.3.xml", OLD_11, NEW_11),
        ("pc-11.3.xml", OLD_11, NEW_11),
        ("q35-handed-over-11.3.xml", NEW_11, OLD_11),  # as libvirt itself has written it again
    ],
)
def test_the_same_of_libvirt_11(name: str, before: CapabilityCache, after: CapabilityCache) -> None:
    record = RuntimeRecord.parse((RECORDS / name).read_bytes())
    assert blocker(record, before=before, after=after) is None
    other = blocker(record, before=OLD, after=NEW)
    assert other is not None


@pytest.mark.parametrize("name", ["q35-qemu10.xml", "pc-qemu10.xml"])
def test_the_same_of_a_newer_qemu(name: str) -> None:
    record = RuntimeRecord.parse((RECORDS / name).read_bytes())
    assert blocker(record, before=NEW) is None
    back = blocker(record, before=NEW, after=OLD)
    assert back is not None
    assert record.machine in back.expected  # 7.2 has no machine type of 10.0


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (blocker(before=NEW), Reason.BINARY),
        (blocker(before=replace(OLD, libvirt=Version(8, 0))), Reason.HOST),
        (blocker(after=replace(NEW, libvirt_ctime=1)), Reason.HOST),
        (blocker(capability_filters=["vnc"]), Reason.HOST),
        (blocker(RuntimeRecord.parse((RECORDS / "q35-custom-capabilities.xml").read_bytes())), Reason.OPTION),
        (blocker(replace(WEB1, machine="pc-q35-99")), Reason.BINARY),
        (blocker(replace(WEB1, virtualisation="kvm")), Reason.BINARY),
        (blocker(after=replace(NEW, machines=())), Reason.BINARY),
        (
            blocker(after=replace(NEW, machines=(Machine("pc-q35-7.2", "tcg", hotplug_cpus=False),))),
            Reason.BINARY,
        ),
        (blocker(replace(WEB1, flags=WEB1.flags[1:])), Reason.BINARY),
        (blocker(replace(WEB1, flags=WEB1.flags[::-1])), Reason.BINARY),
    ],
)
def test_doubt_about_the_flags_blocks(found: Blocker | None, reason: Reason) -> None:
    assert found is not None
    assert found.reason is reason
    assert found.found


def test_a_difference_is_named() -> None:
    found = blocker(replace(WEB1, flags=("kvm", *WEB1.flags[7:])))
    assert found is not None
    assert found.found == "also kvm; not sdl, no-hpet, spice, hda-duplex, ccid-emulated and 2 more"

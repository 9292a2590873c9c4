"""What libvirt found out about a QEMU binary: its cache file, and when its flags may go into a record.

``/var/cache/libvirt/qemu/capabilities/SHA256-OF-THE-PATH.xml``, as ``virQEMUCapsFormatCache`` writes it.

What libvirt 9.0 records at a guest's start (``qemuProcessPrepareQEMUCaps``) is these flags, then in this
order: less ``query-hotpluggable-cpus`` if the machine type cannot hotplug CPUs (gone in 11.3), less the
``capability_filters`` of qemu.conf, plus and less the guest's ``<qemu:capabilities>``. Where none of the
three says anything, the cache is what is recorded.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hostagent.errors import Refused
from hostagent.facts import Version
from hostagent.libvirt_files.record_shape import flags_problem
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.libvirt_files.xml_spans import Element, PlainXmlError, parse_xml
from hostagent.plan import Blocker, Reason

_ACCELERATOR = {"kvm": "kvm", "qemu": "tcg"}  # libvirt's domain type to its word in the cache
_SHOWN = 5  # flags named in a refusal


class CacheNotUnderstood(Refused):
    """The cache file is not what libvirt writes."""

    kind = "capability-cache-not-understood"


@dataclass(frozen=True)
class Machine:
    """A machine type of a binary under one accelerator."""

    name: str
    accelerator: str  # "kvm" or "tcg"
    hotplug_cpus: bool


@dataclass(frozen=True)
class CapabilityCache:
    """What libvirt's cache says of one QEMU binary. Times are seconds since the epoch."""

    emulator: str  # as in the guest's XML: the path is not resolved
    emulator_ctime: int
    modules_mtime: int | None  # of QEMU's module directory; None if there was none
    libvirt_ctime: int
    libvirt: Version
    qemu: Version
    package: str
    kernel: str  # "" when probed without an accelerator
    flags: tuple[str, ...]  # in libvirt's order
    machines: tuple[Machine, ...]


def cache_file_name(emulator: str) -> str:
    """The name of the cache file of a binary, for exactly this spelling of its path."""
    return hashlib.sha256(emulator.encode()).hexdigest() + ".xml"


def flags_of_capability_cache(data: bytes) -> CapabilityCache:
    """Read a cache file; CacheNotUnderstood if it is none."""
    try:
        root = parse_xml(data)
    except PlainXmlError as error:
        raise _not_understood("the XML that libvirt writes", str(error)) from error
    if root.name != "qemuCaps":
        raise _not_understood("<qemuCaps>", f"<{root.name}>")
    flags = tuple(flag.get("name") for flag in root.named("flag"))
    if problem := flags_problem(flags):
        raise _not_understood(*problem)
    machines = (
        Machine(item.get("name"), item.get("type"), item.get("hotplugCpus") == "yes") for item in root.named("machine")
    )
    return CapabilityCache(
        emulator=_text(root, "emulator"),
        emulator_ctime=_number(root, "qemuctime"),
        modules_mtime=_number(root, "qemumoddirmtime") if root.named("qemumoddirmtime") else None,
        libvirt_ctime=_number(root, "selfctime"),
        libvirt=_version(_number(root, "selfvers")),
        qemu=_version(_number(root, "version")),
        package=_text(root, "package", default=""),
        kernel=_text(root, "kernelVersion", default=""),
        flags=flags,
        machines=tuple(machines),
    )


def flags_blocker(
    record: RuntimeRecord,
    *,
    before: CapabilityCache,
    after: CapabilityCache,
    capability_filters: Sequence[str],
    replaced: bool = False,
) -> Blocker | None:
    """Why the flags of ``after`` may not be recorded for this guest as they are, or None.

    ``before`` is the cache of the binary that runs the guest: that libvirt recorded just that shows that it
    would record just ``after`` for the new one. ``capability_filters`` is what qemu.conf says. ``replaced``: another
    build lies where that binary was, and ``before`` is of the same build elsewhere.
    """
    if not replaced and before.emulator != record.emulator:
        return Blocker(Reason.BINARY, f"capabilities of {record.emulator}", f"those of {before.emulator}")
    return next(_flags_blockers(record, before, after, capability_filters), None)


def _flags_blockers(
    record: RuntimeRecord, before: CapabilityCache, after: CapabilityCache, filters: Sequence[str]
) -> Iterator[Blocker]:
    if (before.libvirt, before.libvirt_ctime) != (after.libvirt, after.libvirt_ctime):
        found = f"libvirt {before.libvirt} and {after.libvirt}, or two builds of one"
        hint = f"virsh domcapabilities --emulatorbin {after.emulator}"
        yield Blocker(Reason.HOST, "both binaries examined by the same libvirt", found, hint)
    if filters:
        yield Blocker(Reason.HOST, "no capability_filters in qemu.conf", ", ".join(filters))
    if record.custom_flags:
        yield Blocker(Reason.OPTION, "no capabilities set by hand", "<qemu:capabilities>")
    accelerator = _ACCELERATOR.get(record.virtualisation, "")
    for cache in (before, after):
        if Machine(record.machine, accelerator, hotplug_cpus=True) not in cache.machines:
            expected = f"machine type {record.machine} ({accelerator}) with CPU hotplug in {cache.emulator}"
            yield Blocker(Reason.BINARY, expected, "none")
    if record.flags != before.flags:
        more = [flag for flag in record.flags if flag not in before.flags]
        less = [flag for flag in before.flags if flag not in record.flags]
        found = "; ".join(_shown(word, names) for word, names in (("also", more), ("not", less)) if names)
        hint = "another libvirt or QEMU started this guest; a rehearsal shows what to record"
        yield Blocker(Reason.BINARY, f"the flags of QEMU {before.qemu}", found or "another order", hint)


def _shown(word: str, names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{word} {', '.join(names[:_SHOWN])}{rest}"


def _not_understood(expected: str, found: str) -> CacheNotUnderstood:
    return CacheNotUnderstood("reading libvirt's capability cache", expected=expected, found=found)


def _text(root: Element, name: str, *, default: str | None = None) -> str:
    found = root.named(name)
    if not found and default is not None:
        return default
    if len(found) != 1:
        raise _not_understood(f"one <{name}>", str(len(found)))
    return found[0].text


def _number(root: Element, name: str) -> int:
    text = _text(root, name)
    if not text.isascii() or not text.isdigit():
        raise _not_understood(f"a number in <{name}>", repr(text))
    return int(text)


def _version(number: int) -> Version:
    return Version(number // 1_000_000, number // 1_000 % 1_000, number % 1_000)

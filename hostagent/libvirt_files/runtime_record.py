"""libvirt's runtime record of a guest: read, changed where a handover must, written back.

``/run/libvirt/qemu/NAME.xml``, shaped so (record_shape.py has all of it)::

    <domstatus state= reason= pid=>
      <monitor .../> <vcpus>...</vcpus> <qemuCaps>...</qemuCaps> ...    what libvirt keeps of the QEMU process
      <domain>...</domain>                                              the live XML, with private data
    </domstatus>

libvirt forgets a guest whose record it cannot read and kills one whose record is wrong. So what is unknown
is refused, and what is written back is the original bytes with single values replaced.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

from hostagent.errors import Refused
from hostagent.libvirt_files.memory_backing import ram_of, shared_ram_edit
from hostagent.libvirt_files.record_shape import (
    RecordNotUnderstood,
    check_status,
    flags_problem,
    not_understood,
    number_of,
    once_problem,
    one,
    text_of,
)
from hostagent.libvirt_files.vnc_display import VncDisplay, vnc_display
from hostagent.libvirt_files.xml_spans import Element, PlainXmlError, Span, differences, escaped, parse_xml, spliced
from hostagent.plan import Blocker, Reason

__all__ = ["RecordNotUnderstood", "RuntimeRecord"]

MONITOR_PATH_MAX = 107  # bytes: sun_path of unix(7) less its NUL; libvirt kills a guest whose path is longer

# What the mere presence of an element tells.
_OBSTACLES = {
    "fakereboot": (Reason.STATE, "no reboot under way", "a reboot that libvirt has yet to finish"),
    "preMigrationMemlock": (Reason.JOB, "no migration", "a migration that has not ended"),
    "backups": (Reason.JOB, "no backup", "a backup under way"),
    "slirp": (Reason.USER_NETWORK, "no user network", "a slirp helper, which serves one QEMU only"),
    "dbusDaemon": (Reason.FEATURE, "no D-Bus helper", "a D-Bus daemon of this guest"),
    "dbusVMState": (Reason.FEATURE, "no D-Bus helper", "helper state that migrates over D-Bus"),
    "prDaemon": (Reason.FEATURE, "no persistent reservations", "a persistent reservation helper"),
}


@dataclass(frozen=True)
class RuntimeRecord:
    """A guest's runtime record; ``data`` is the file, byte for byte."""

    data: bytes = field(repr=False, compare=False)
    root: Element = field(repr=False, compare=False)
    name: str
    uuid: str
    domain_id: int
    virtualisation: str  # libvirt's domain type: "kvm" or "qemu"
    machine: str
    emulator: str
    state: str
    reason: str
    pid: int
    monitor_path: str
    monitor_type: str
    vcpu_threads: tuple[tuple[int, int], ...]  # vCPU and thread id
    flags: tuple[str, ...]  # QEMU's capabilities, in libvirt's order
    custom_flags: bool  # the owner added or took away some: <qemu:capabilities>
    aliases: tuple[str, ...]  # of the devices that libvirt will look for in QEMU
    namespaces: tuple[str, ...]
    lib_dir: str
    channel_target_dir: str
    memory_backing_dir: str  # "" from libvirt 9.0, which works it out
    ram_source: str  # of <memoryBacking>: "file", "memfd", "anonymous"; "" when it does not say
    ram_access: str  # "shared", "private" or ""
    block_nodes: tuple[tuple[str, tuple[str, ...]], ...]  # disk alias and its node names, backing files included
    terminals: tuple[tuple[str, str], ...]  # alias and pty; a serial port also shows up as a console
    display: VncDisplay | None = field(repr=False)
    next_block_node: int
    next_fdset: int
    job: str  # "" when none
    block_jobs: tuple[str, ...]
    lock_state: str

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a record; RecordNotUnderstood for anything that libvirt 9.0 to 11.3 would not have written."""
        try:
            root = parse_xml(data)
        except PlainXmlError as error:
            raise not_understood("the XML that libvirt writes", str(error)) from error
        check_status(root)
        domain, monitor, vcpus = one(root, "domain"), one(root, "monitor"), one(root, "vcpus").elements
        devices = one(domain, "devices")
        record = cls(
            data=data,
            root=root,
            name=text_of(domain, "name"),
            uuid=text_of(domain, "uuid"),
            domain_id=number_of(domain, "id", least=1),
            virtualisation=domain.get("type"),
            machine=one(one(domain, "os"), "type").get("machine"),
            emulator=text_of(devices, "emulator"),
            state=root.get("state"),
            reason=root.get("reason"),
            pid=number_of(root, "pid", least=1),
            monitor_path=monitor.get("path"),
            monitor_type=monitor.get("type"),
            vcpu_threads=tuple((number_of(vcpu, "id"), number_of(vcpu, "pid", least=1)) for vcpu in vcpus),
            flags=_listed(root, "qemuCaps", "name"),
            custom_flags=any(item.name.endswith(":capabilities") for item in domain.elements),
            aliases=_listed(root, "devices", "alias"),
            namespaces=tuple(item.name for part in root.named("namespaces") for item in part.elements),
            lib_dir=one(root, "libDir").get("path"),
            channel_target_dir=one(root, "channelTargetDir").get("path"),
            memory_backing_dir="".join(part.get("path") for part in root.named("memoryBackingDir")),
            ram_source=ram_of(domain)[0],
            ram_access=ram_of(domain)[1],
            block_nodes=tuple((_alias(disk), _node_names(disk)) for disk in devices.named("disk")),
            terminals=tuple((_alias(device), source.get("path")) for device, source in _ptys(devices)),
            display=vnc_display(devices),
            next_block_node=number_of(one(root, "nodename"), "index"),
            next_fdset=number_of(one(root, "fdset"), "index"),
            job="".join(f"{job.get('type')}/{job.get('async')}" for job in root.named("job")),
            block_jobs=_block_jobs(one(root, "blockjobs")),
            lock_state="".join(part.text for part in root.named("lockstate")),
        )
        if record.monitor_type != "unix" or not record.monitor_path.startswith("/"):
            found = f"{record.monitor_type} at {record.monitor_path!r}"
            raise not_understood("a monitor on a unix socket", found)
        vcpu_ids = [vcpu for vcpu, _ in record.vcpu_threads]
        if problem := flags_problem(record.flags) or once_problem(vcpu_ids, "vCPU"):
            raise not_understood(*problem)
        return record

    def obstacles(self) -> tuple[Blocker, ...]:
        """Why this guest cannot be handed over now, as far as the record tells."""
        found = []
        if self.state != "running" and (self.state, self.reason) != ("paused", "user"):
            expected = "running, or paused by its owner"
            found.append(Blocker(Reason.STATE, expected, f"{self.state} ({self.reason})"))
        if self.job:
            found.append(Blocker(Reason.JOB, "no job", f"job {self.job}"))
        if self.block_jobs:
            found.append(Blocker(Reason.JOB, "no block job", ", ".join(self.block_jobs)))
        if self.lock_state:
            found.append(Blocker(Reason.LOCK_MANAGER, "no disk leases", f"lock state {self.lock_state!r}"))
        marks = [part.name for part in self.root.elements if part.name in _OBSTACLES]
        return (*found, *(Blocker(*_OBSTACLES[mark]) for mark in marks))

    @property
    def ram_folder(self) -> str:
        """The name of the guest's folder for RAM files: libvirt's short name of it, as in its other folders."""
        return self.lib_dir.rpartition("/")[2].removeprefix("domain-")

    @property
    def live_xml(self) -> str:
        """The live XML in it, with libvirt's private data."""
        whole = one(self.root, "domain").whole
        return self.data[whole.start : whole.end].decode()

    def adopted(self) -> Self:
        """The record of the same guest with its RAM in shared files, every other byte as it was.

        libvirt then removes the files when the guest ends, and writes the live XML so. RecordNotUnderstood if the
        result, read again, says anything else.
        """
        edit = shared_ram_edit(one(self.root, "domain"), self.data)
        if edit is None:
            raise not_understood("<memory> in <domain>", "none")
        result = type(self).parse(spliced(self.data, [edit]))
        if result != replace(self, ram_source="file", ram_access="shared"):
            raise not_understood("the record to say that the RAM is in shared files, and nothing else", "more")
        return result

    def handed_over(
        self,
        pid: int,
        vcpu_threads: Mapping[int, int],
        emulator: str,
        flags: Sequence[str],
        *,
        monitor_path: str | None = None,
        terminals: Mapping[str, str] | None = None,
    ) -> bytes:
        """The record naming another QEMU process, every other byte as it was.

        ``terminals`` gives an alias its new pty. Refused for a value that cannot be right,
        RecordNotUnderstood if the result, read again, says more than this record with these values changed.
        """
        vcpus, ptys = [vcpu for vcpu, _ in self.vcpu_threads], terminals or {}
        if sorted(vcpu_threads) != sorted(vcpus):
            raise _refused(f"threads of the vCPUs {vcpus}", str(sorted(vcpu_threads)))
        if unknown := set(ptys) - {alias for alias, _ in self.terminals}:
            raise _refused("terminals of this guest", ", ".join(sorted(unknown)))
        wanted = replace(
            self,
            pid=pid,
            vcpu_threads=tuple((vcpu, vcpu_threads[vcpu]) for vcpu in vcpus),
            emulator=emulator,
            flags=tuple(flags),
            monitor_path=self.monitor_path if monitor_path is None else monitor_path,
            terminals=tuple((alias, ptys.get(alias, path)) for alias, path in self.terminals),
        )
        _check_values(wanted, [wanted.emulator, wanted.monitor_path, *ptys.values()])
        edits = list(self._edits(wanted))
        result = RuntimeRecord.parse(spliced(self.data, edits))
        for changed in differences(self.root, result.root):
            if not any(place.start <= changed.start and changed.end <= place.end for place, _ in edits):
                found = self.data[changed.start : changed.end][:200]
                raise not_understood("nothing else changed", f"change of {found!r}")
        if result != wanted:
            names = [item.name for item in fields(self)]
            odd = [name for name in names if getattr(result, name) != getattr(wanted, name)]
            raise not_understood("the record to say what was put in", f"other {', '.join(odd)}")
        return result.data

    def _edits(self, wanted: Self) -> Iterator[tuple[Span, bytes]]:
        """What to put where, for the values that differ."""
        devices, vcpus = one(one(self.root, "domain"), "devices"), one(self.root, "vcpus").elements
        values = [(self.root, "pid", str(wanted.pid))]
        values += [(one(self.root, "monitor"), "path", wanted.monitor_path)]
        for vcpu, (_, thread) in zip(vcpus, wanted.vcpu_threads, strict=True):
            values += [(vcpu, "pid", str(thread))]
        for (device, source), (_, path) in zip(_ptys(devices), wanted.terminals, strict=True):
            if path != source.get("path"):  # a console repeats it as tty=
                values += [(source, "path", path), (device, "tty", path)]
        for element, name, value in values:
            attribute = element.attribute(name)
            if attribute is not None and attribute.value != value:
                yield attribute.span, _escaped(value)
        if wanted.emulator != self.emulator:
            yield one(devices, "emulator").inner, _escaped(wanted.emulator)
        if wanted.flags != self.flags:
            yield one(self.root, "qemuCaps").inner, self._flag_list(wanted.flags)

    def _flag_list(self, flags: Sequence[str]) -> bytes:
        """The inside of <qemuCaps>, in the shape of the list that is there."""
        inner, listed = one(self.root, "qemuCaps").inner, one(self.root, "qemuCaps").elements
        (name,) = listed[0].attributes
        before = self.data[inner.start : name.span.start]
        after = self.data[name.span.end : listed[0].whole.end]
        last = self.data[listed[-1].whole.end : inner.end]
        return b"".join(before + flag.encode() + after for flag in flags) + last


def _refused(expected: str, found: str) -> Refused:
    return Refused("changing libvirt's runtime record", expected=expected, found=found)


def _check_values(wanted: RuntimeRecord, paths: Sequence[str]) -> None:
    """What would make libvirt drop or kill the guest."""
    numbers = [wanted.pid, *(thread for _, thread in wanted.vcpu_threads)]
    if bad := [number for number in numbers if not 0 < number < 2**31]:
        raise _refused("process and thread ids above zero", ", ".join(map(str, bad)))
    for path in paths:
        if not _escaped(path).startswith(b"/"):
            raise _refused("absolute paths", repr(path))
    if len(wanted.monitor_path.encode()) > MONITOR_PATH_MAX:
        raise _refused(f"a monitor path of at most {MONITOR_PATH_MAX} bytes", wanted.monitor_path)
    if problem := flags_problem(wanted.flags):
        raise _refused(*problem)


def _escaped(path: str) -> bytes:
    try:
        return escaped(path)
    except ValueError as error:
        raise _refused("a path that XML can carry", repr(path)) from error


def _listed(root: Element, part: str, name: str) -> tuple[str, ...]:
    return tuple(item.get(name) for element in root.named(part) for item in element.elements)


def _alias(device: Element) -> str:
    return one(device, "alias").get("name")


def _node_names(disk: Element) -> tuple[str, ...]:
    return tuple(item.get("name") for item in disk.walk() if item.name == "nodename")


def _ptys(devices: Element) -> Iterator[tuple[Element, Element]]:
    """Every character device on a pseudo terminal, and its source."""
    for device in devices.elements:
        if device.name in {"serial", "parallel", "console", "channel"} and device.get("type") == "pty":
            yield device, one(device, "source")


def _block_jobs(part: Element) -> tuple[str, ...]:
    names = tuple(item.get("name", "unnamed") for item in part.elements)
    return names or (() if part.get("active") == "no" else ("active",))

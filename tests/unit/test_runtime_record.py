"""Runtime records: real ones of libvirt 9.0 and 11.3, made-up ones in every shape XML allows, damaged ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostagent.errors import Refused
from hostagent.libvirt_files.runtime_record import MONITOR_PATH_MAX, RecordNotUnderstood, RuntimeRecord
from hostagent.libvirt_files.xml_spans import Span, escaped, spliced
from hostagent.plan import Reason

RECORDS = Path(__file__).parent / "records"
REAL = sorted(path.name for path in RECORDS.glob("*.xml") if not path.name.startswith("capabilities"))
NEW_EMULATOR = "/opt/qemu 'ä' & <10>/bin/qemu-system-x86_64"


def read(name: str) -> bytes:
    return (RECORDS / name).read_bytes()


def threads(record: RuntimeRecord, *, start: int = 5000) -> dict[int, int]:
    return {vcpu: start + vcpu for vcpu, _ in record.vcpu_threads}


def said(record: RuntimeRecord) -> dict[str, object]:
    return {item.name: getattr(record, item.name) for item in fields(record) if item.name not in {"data", "root"}}


# --- real records


def test_a_q35_guest_is_read() -> None:
    record = RuntimeRecord.parse(read("q35.xml"))
    assert (record.name, record.domain_id, record.state, record.reason) == ("web1", 1, "running", "booted")
    assert (record.virtualisation, record.machine) == ("qemu", "pc-q35-7.2")
    assert record.emulator == "/usr/bin/qemu-system-x86_64"
    assert record.monitor_path == "/var/lib/libvirt/qemu/domain-1-web1/monitor.sock"
    assert record.lib_dir == "/var/lib/libvirt/qemu/domain-1-web1"
    assert [vcpu for vcpu, _ in record.vcpu_threads] == [0, 1]
    assert (len(record.flags), record.flags[0], record.flags[-1]) == (198, "sdl", "netdev.stream")
    assert {"virtio-disk0", "net0", "channel0", "serial0", "pci.1"} <= set(record.aliases)
    assert record.block_nodes == (("virtio-disk0", ("libvirt-1-storage", "libvirt-1-format")),)
    assert record.namespaces == ("mount",)
    assert record.terminals == ()
    assert not record.obstacles()


def test_a_name_of_any_characters_is_read() -> None:
    record = RuntimeRecord.parse(read("pc.xml"))
    assert record.name == "db \"9\" & 'süß' <x>"
    assert record.monitor_path == f"/var/lib/libvirt/qemu/domain-2-{record.name}/monitor.sock"
    assert record.terminals == (("serial0", "/dev/pts/0"), ("serial0", "/dev/pts/0"))


@pytest.mark.parametrize("name", REAL)
def test_only_what_was_asked_for_changes_in_a_real_record(name: str) -> None:
    old = RuntimeRecord.parse(read(name))
    flags = ("kvm", *old.flags[3:])
    data = old.handed_over(4999, threads(old), NEW_EMULATOR, flags, monitor_path="/run/new.sock")
    before, after = old.data.splitlines(), data.splitlines()
    added = [line.decode().strip() for line in after if line not in before]
    assert added == [
        f"<domstatus state='{old.state}' reason='{old.reason}' pid='4999'>",
        "<monitor path='/run/new.sock' type='unix'/>",
        *(f"<vcpu id='{vcpu}' pid='{5000 + vcpu}'/>" for vcpu, _ in old.vcpu_threads),
        "<flag name='kvm'/>",
        "<emulator>/opt/qemu &apos;ä&apos; &amp; &lt;10&gt;/bin/qemu-system-x86_64</emulator>",
    ]
    assert [line for line in after if line in before] == [line for line in before if line in after]
    assert len([line for line in before if line not in after]) == len(added) + 2  # three flags for one
    back = RuntimeRecord.parse(data).handed_over(
        old.pid, dict(old.vcpu_threads), old.emulator, old.flags, monitor_path=old.monitor_path
    )
    assert back == old.data


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("q35.xml", ""),
        ("q35-11.3.xml", "/var/lib/libvirt/qemu/ram/libvirt/qemu/1-web1"),
        ("pc-11.3.xml", "/var/lib/libvirt/qemu/ram/libvirt/qemu/2-db \"9\" & 'süß' <x>"),
    ],
)
def test_libvirt_11_records_where_the_guests_own_ram_is(name: str, folder: str) -> None:
    record = RuntimeRecord.parse(read(name))
    assert record.memory_backing_dir == folder
    assert folder in ("", f"/var/lib/libvirt/qemu/ram/libvirt/qemu/{record.ram_folder}")


def test_terminals_are_renamed_wherever_they_stand() -> None:
    old = RuntimeRecord.parse(read("pc.xml"))
    data = old.handed_over(
        old.pid, dict(old.vcpu_threads), old.emulator, old.flags, terminals={"serial0": "/dev/pts/17"}
    )
    assert data == old.data.replace(b"/dev/pts/0'", b"/dev/pts/17'")
    assert data.count(b"/dev/pts/17") == 3


def test_nothing_asked_for_changes_nothing() -> None:
    old = RuntimeRecord.parse(read("pc-metadata.xml"))
    assert old.handed_over(old.pid, dict(old.vcpu_threads), old.emulator, old.flags) == old.data


# --- adoption

BACKINGS = {
    "none": b"",
    "memfd": b"<memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>",
    "more in it": b"<memoryBacking><nosharepages/><source type='anonymous'/></memoryBacking>",
    "empty": b"<memoryBacking/>",
}


@pytest.mark.parametrize("backing", BACKINGS.values(), ids=list(BACKINGS))
@pytest.mark.parametrize("name", REAL)
def test_an_adopted_guest_has_its_ram_in_shared_files_and_is_otherwise_the_same(name: str, backing: bytes) -> None:
    data, count = re.subn(rb"(?s)<memoryBacking>.*?</memoryBacking>", backing, read(name))
    assert count == 1
    old = RuntimeRecord.parse(data)
    new = old.adopted()
    assert (new.ram_source, new.ram_access) == ("file", "shared")
    assert replace(new, ram_source=old.ram_source, ram_access=old.ram_access) == old
    changed = re.compile(rb"(?s)\s*<memoryBacking(/>|>.*?</memoryBacking>)")
    assert changed.sub(b"", new.data) == changed.sub(b"", old.data)
    assert new.data.count(b"<nosharepages/>") == old.data.count(b"<nosharepages/>")
    assert RuntimeRecord.parse(new.data).adopted().data == new.data
    handed_over = new.handed_over(4999, threads(new), NEW_EMULATOR, new.flags)
    assert RuntimeRecord.parse(handed_over).ram_source == "file"


def test_a_guest_with_shared_files_is_adopted_already() -> None:
    old = RuntimeRecord.parse(read("q35.xml"))
    assert old.adopted() == old


def test_the_ram_s_folder_is_called_as_libvirt_calls_it() -> None:
    assert RuntimeRecord.parse(read("q35.xml")).ram_folder == "1-web1"


# --- the display


def displayed(graphics: str) -> bytes:
    """A record whose live definition has that as well."""
    before, end, after = read("q35.xml").rpartition(b"</devices>")
    return before + graphics.encode() + end + after


@pytest.mark.parametrize(
    ("graphics", "place", "password"),
    [
        ("<graphics type='vnc' port='5901' listen='127.0.0.1'>{}</graphics>", "127.0.0.1:5901", ""),
        ("<graphics type='vnc' port='5900' passwd='s &amp; t'>{}</graphics>", "127.0.0.1:5900", "s & t"),
    ],
)
def test_where_its_display_is_with_its_password(graphics: str, place: str, password: str) -> None:
    listen = "<listen type='address' address='127.0.0.1'/>"
    data = displayed(graphics.format(listen))
    display = RuntimeRecord.parse(data).display
    assert display is not None
    assert (display.place, display.password) == (place, password)
    assert password not in repr(display) or not password
    assert "passw" not in repr(RuntimeRecord.parse(data))


@pytest.mark.parametrize(
    ("graphics", "place"),
    [
        ("<graphics type='vnc'><listen type='socket' socket='/run/vnc.sock'/></graphics>", "/run/vnc.sock"),
        ("<graphics type='vnc'><listen type='none'/></graphics>", None),
        ("<graphics type='spice' port='5900'><listen type='address' address='::1'/></graphics>", None),
    ],
)
def test_a_display_at_a_socket_or_nowhere(graphics: str, place: str | None) -> None:
    data = displayed(graphics)
    display = RuntimeRecord.parse(data).display
    assert (display and display.place) == place


# --- obstacles


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("q35-paused.xml", []),
        ("q35-saving.xml", [Reason.STATE, Reason.JOB]),
        ("q35-block-job.xml", [Reason.JOB]),
    ],
)
def test_real_obstacles_are_told(name: str, reasons: list[Reason]) -> None:
    assert [blocker.reason for blocker in RuntimeRecord.parse(read(name)).obstacles()] == reasons


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ("<fakereboot/>", Reason.STATE),
        ("<prDaemon/>", Reason.FEATURE),
        ("<dbusDaemon/>", Reason.FEATURE),
        ("<dbusVMState/>", Reason.FEATURE),
        ("<slirp><helper alias='net0' pid='7'><feature name='ipv4'/></helper></slirp>", Reason.USER_NETWORK),
        ("<backups><domainbackup/></backups>", Reason.JOB),
        ("<preMigrationMemlock>65536</preMigrationMemlock>", Reason.JOB),
        ("<job type='none' async='migration out' phase='perform3'/>", Reason.JOB),
        ("<lockstate>leases</lockstate>", Reason.LOCK_MANAGER),
    ],
)
def test_what_the_record_holds_is_an_obstacle(element: str, reason: Reason) -> None:
    data = read("q35.xml").replace(b"<domain ", element.encode() + b"<domain ", 1)
    assert [blocker.reason for blocker in RuntimeRecord.parse(data).obstacles()] == [reason]


@pytest.mark.parametrize(
    "jobs", ["<blockjobs active='yes'/>", "<blockjobs active='no'><blockjob name='x'/></blockjobs>"]
)
def test_any_block_job_is_an_obstacle(jobs: str) -> None:
    data = read("q35.xml").replace(b"<blockjobs active='no'/>", jobs.encode())
    assert [blocker.reason for blocker in RuntimeRecord.parse(data).obstacles()] == [Reason.JOB]


@pytest.mark.parametrize("state", ["state='paused' reason='ioerror'", "state='pmsuspended' reason='unknown'"])
def test_a_state_nobody_asked_for_is_an_obstacle(state: str) -> None:
    data = read("q35.xml").replace(b"state='running' reason='booted'", state.encode())
    assert [blocker.reason for blocker in RuntimeRecord.parse(data).obstacles()] == [Reason.STATE]


def test_no_lease_is_no_obstacle() -> None:
    data = read("q35.xml").replace(b"<domain ", b"<lockstate></lockstate><domain ", 1)
    assert not RuntimeRecord.parse(data).obstacles()


# --- refusals

CHANGED = {
    "doctype": (r"<domstatus", r"<!DOCTYPE x [<!ENTITY a 'b'>]><domstatus"),
    "other encoding": (r"\A", "<?xml version='1.0' encoding='ISO-8859-1'?>"),
    "other root": (r"domstatus", r"domstate"),
    "unknown part": (r"<libDir", r"<surprise/><libDir"),
    "unknown attribute of the root": (r"reason=", r"tier='1' reason="),
    "unknown attribute of a part": (r"<libDir ", r"<libDir old='1' "),
    "unknown attribute of a flag": (r"<flag name='sdl'", r"<flag since='1' name='sdl'"),
    "unknown element inside a part": (r"<mount/>", r"<mount/><net/>"),
    "element inside a flag": (r"<flag name='sdl'/>", r"<flag name='sdl'><x/></flag>"),
    "text where none belongs": (r"<qemuCaps>", r"<qemuCaps>x"),
    "text in the root": (r"<monitor", r"x<monitor"),
    "comment in a part": (r"<qemuCaps>", r"<qemuCaps><!-- x -->"),
    "processing instruction in the root": (r"<monitor", r"<?x y?><monitor"),
    "unknown state": (r"state='running'", r"state='dreaming'"),
    "no state": (r"state='running' ", ""),
    "no pid": (r" pid='\d+'>", ">"),
    "pid of nothing": (r" pid='\d+'>", " pid=''>"),
    "pid zero": (r" pid='\d+'>", " pid='0'>"),
    "pid below zero": (r" pid='\d+'>", " pid='-1'>"),
    "pid too big": (r" pid='\d+'>", " pid='4294967296'>"),
    "pid no number": (r" pid='\d+'>", " pid='1_0'>"),
    "pid in other digits": (r" pid='\d+'>", " pid='١٢'>"),
    "no monitor": (r"<monitor .*?/>", ""),
    "two monitors": (r"(<monitor .*?/>)", r"\1\1"),
    "monitor on a terminal": (r"type='unix'/>", r"type='pty'/>"),
    "monitor without path": (r"<monitor path='.*?' ", r"<monitor path='' "),
    "no capabilities": (r"(?s)<qemuCaps>.*</qemuCaps>", ""),
    "two lists of capabilities": (r"(?s)(<qemuCaps>.*</qemuCaps>)", r"\1\1"),
    "empty capabilities": (r"(?s)<qemuCaps>.*</qemuCaps>", "<qemuCaps>\n</qemuCaps>"),
    "duplicated flag": (r"(<flag name='sdl'/>)", r"\1\1"),
    "odd flag": (r"name='sdl'", r"name='s&amp;l'"),
    "duplicated vCPU": (r"<vcpu id='1'", r"<vcpu id='0'"),
    "vCPU without thread": (r"(<vcpu id='1') pid='\d+'", r"\1"),
    "thread zero": (r"(<vcpu id='1') pid='\d+'", r"\1 pid='0'"),
    "vCPU id no number": (r"<vcpu id='1'", r"<vcpu id='a'"),
    "no lib dir": (r"<libDir .*?/>", ""),
    "no domain": (r"(?s)<domain .*</domain>", ""),
    "two domains": (r"(?s)(<domain .*</domain>)", r"\1\1"),
    "no domain id": (r" id='1'>", ">"),
    "no emulator": (r"<emulator>.*</emulator>", ""),
    "empty emulator": (r"<emulator>.*</emulator>", "<emulator/>"),
    "two emulators": (r"(<emulator>.*</emulator>)", r"\1\1"),
    "emulator of elements": (r"<emulator>.*</emulator>", "<emulator>/a<b/></emulator>"),
    "emulator with a comment": (r"<emulator>", "<emulator><!-- x -->"),
    "two names": (r"(<name>.*</name>)", r"\1\1"),
    "no uuid": (r"<uuid>.*</uuid>", ""),
    "no node name counter": (r"<nodename index='1'/>", ""),
    "undefined entity": (r"<name>", "<name>&nbsp;"),
    "cut off": (r"(?s)</domain>.*", ""),
    "two roots": (r"\Z", "<domstatus/>"),
    "too deep": (r"<name>", "<name>" + "<a>" * 300 + "</a>" * 300),
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_libvirt_would_not_write_is_refused(change: str) -> None:
    pattern, replacement = CHANGED[change]
    data, count = re.subn(pattern, replacement, read("q35.xml").decode())
    assert count
    with pytest.raises(RecordNotUnderstood) as refused:
        RuntimeRecord.parse(data.encode())
    assert refused.value.expected
    assert refused.value.found
    assert refused.value.hint


@pytest.mark.parametrize("data", [b"", b"\xff\xfe<\x00", b"<domstatus>\xff</domstatus>", b"\x00"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RecordNotUnderstood):
        RuntimeRecord.parse(data)


@dataclass(frozen=True)
class Asked:
    """What a handover would write; by default nothing new."""

    pid: int = 74
    vcpu_threads: tuple[tuple[int, int], ...] = ((0, 81), (1, 82))
    emulator: str = "/usr/bin/qemu-system-x86_64"
    flags: Sequence[str] = ("sdl",)
    monitor_path: str | None = None
    terminal: str | None = None


@pytest.mark.parametrize(
    "asked",
    [
        Asked(pid=0),
        Asked(pid=-1),
        Asked(pid=2**31),
        Asked(vcpu_threads=((0, 81),)),
        Asked(vcpu_threads=((0, 81), (1, 82), (2, 83))),
        Asked(vcpu_threads=((0, 81), (2, 82))),
        Asked(vcpu_threads=((0, 81), (1, 0))),
        Asked(flags=()),
        Asked(flags=("kvm", "kvm")),
        Asked(flags=("kvm'/><x y='",)),
        Asked(flags=("",)),
        Asked(emulator=""),
        Asked(emulator="qemu"),
        Asked(emulator="/a\nb"),
        Asked(emulator="/a\x00b"),
        Asked(emulator="/a\udcff"),
        Asked(emulator="/a\uffff"),
        Asked(monitor_path=""),
        Asked(monitor_path="/" + "ä" * (MONITOR_PATH_MAX // 2 + 1)),
        Asked(terminal="/dev/pts/1"),
    ],
    ids=str,
)
def test_values_that_cannot_be_right_are_refused(asked: Asked) -> None:
    record = RuntimeRecord.parse(read("q35.xml"))
    with pytest.raises(Refused) as refused:
        record.handed_over(
            asked.pid,
            dict(asked.vcpu_threads),
            asked.emulator,
            asked.flags,
            monitor_path=asked.monitor_path,
            terminals=None if asked.terminal is None else {"serial0": asked.terminal},
        )
    assert refused.value.expected
    assert refused.value.found


def test_a_splice_gone_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    record = RuntimeRecord.parse(read("q35.xml"))
    for right, wrong in ((b"<uuid>4", b"<uuid>5"), (b"<rememberOwner/>", b""), (b"</os>\n", b"</os>\n\n")):
        assert right in record.data
        monkeypatch.setattr(
            "hostagent.libvirt_files.runtime_record.spliced",
            lambda data, edits, right=right, wrong=wrong: spliced(data, edits).replace(right, wrong, 1),
        )
        with pytest.raises(RecordNotUnderstood):
            record.handed_over(1, threads(record), record.emulator, record.flags)


# --- made-up records

TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn"], exclude_characters="\ufffe\uffff/"),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() == text and text.strip(" \t\r\n"))
PATH = TEXT.map(lambda text: "/" + text)
SHORT_PATH = st.text("aä&<>'\"] -", max_size=20).map(lambda text: "/run/" + text)
PIDS = st.integers(1, 2**31 - 1)
FLAGS = st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_.+-]{0,12}", fullmatch=True), min_size=1, max_size=6, unique=True)
STRAY = st.sampled_from(
    [
        "",
        "<!-- -> 'pid' <flag name=\"x\"/> -->",
        "<?pi <emulator> ?>",
        "<![CDATA[<vcpu id='0' pid='1'/>]]>",
        "a &amp; b",
    ]
)


@dataclass(frozen=True)
class Written:
    """A record as text, and the values it was made of."""

    text: str
    name: str
    pid: int
    emulator: str
    monitor_path: str
    flags: tuple[str, ...]
    vcpu_threads: tuple[tuple[int, int], ...]
    terminal: str


@st.composite
def written(draw: st.DrawFn) -> Written:
    quote = draw(st.sampled_from("'\""))
    gap = draw(st.sampled_from([" ", "  ", "\n", "\t", " \r\n "]))
    equals = draw(st.sampled_from(["=", " = ", "=\n"]))
    close = draw(st.sampled_from(["/>", " />", "\n/>"]))
    line = draw(st.sampled_from(["", "\n", "\n  ", "\r\n\t", "\n\n"]))
    head = draw(
        st.sampled_from(["", "<?xml version='1.0'?>\n", "<?xml version='1.0' encoding='UTF-8'?>", "<!-- ä -->\n"])
    )
    stray = draw(STRAY)
    name, emulator, monitor, terminal = draw(TEXT), draw(PATH), draw(SHORT_PATH), draw(PATH)
    flags, vcpus = draw(FLAGS), draw(st.lists(st.integers(0, 300), max_size=4, unique=True))
    threads_ = tuple((vcpu, draw(PIDS)) for vcpu in vcpus)
    pid = draw(PIDS)

    def tag(element: str, inner: str | None = None, **attributes: object) -> str:
        entity = {"'": "&#39;", '"': "&quot;"}
        values = {key: escape(str(value), {quote: entity[quote]}) for key, value in attributes.items()}
        listed = "".join(f"{gap}{key}{equals}{quote}{value}{quote}" for key, value in values.items())
        return f"<{element}{listed}{close}" if inner is None else f"<{element}{listed}>{inner}</{element}>"

    def lines(*items: str) -> str:
        return line + line.join(items) + line

    source, alias = tag("source", path=terminal), tag("alias", name="serial0")
    devices = lines(
        stray,
        tag("emulator", escape(emulator)),
        tag("disk", lines(source, alias, tag("nodename", name="n1"), stray)),
        tag("serial", lines(source, stray, alias), type="pty"),
        tag("console", lines(source, alias), type="pty", tty=terminal),
        tag("channel", lines(tag("source", path=emulator)), type="unix"),
    )
    domain = lines(
        tag("name", escape(name)),
        tag("uuid", "4592f1c0-1b97-579e-b7b6-0cf4de9305ad"),
        tag(
            "metadata",
            tag("x:note", stray + tag("emulator", escape(emulator)), **{"xmlns:x": name, "pid": pid}),
        ),
        tag("os", lines(tag("type", "hvm", machine="q35"))),
        tag("devices", devices),
        stray,
    )
    status = lines(
        tag("monitor", path=monitor, type="unix"),
        tag("vcpus", lines(*(tag("vcpu", id=vcpu, pid=thread) for vcpu, thread in threads_))),
        tag("qemuCaps", lines(*(tag("flag", name=flag) for flag in flags))),
        tag("libDir", path="/lib/" + name),
        tag("channelTargetDir", path="/target/" + name),
        tag("cpu", lines(stray, tag("model", escape(name)))),
        tag("nodename", index=3),
        tag("fdset", index=2),
        tag("blockjobs", active="no"),
        tag("agentTimeout", "-2"),
        tag("domain", domain, type="kvm", id=7),
    )
    text = (
        head + tag("domstatus", status, state="running", reason="booted", pid=pid) + draw(st.sampled_from(["", "\n"]))
    )
    return Written(text, name, pid, emulator, monitor, tuple(flags), threads_, terminal)


NO_SHRINK_LIMIT = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@NO_SHRINK_LIMIT
@given(written())
def test_every_way_of_writing_is_read(made: Written) -> None:
    record = RuntimeRecord.parse(made.text.encode())
    assert record.data == made.text.encode()
    assert record.name == made.name
    assert record.pid == made.pid
    assert record.emulator == made.emulator
    assert record.monitor_path == made.monitor_path
    assert record.flags == made.flags
    assert record.vcpu_threads == made.vcpu_threads
    assert record.terminals == (("serial0", made.terminal),) * 2
    assert record.block_nodes == (("serial0", ("n1",)),)
    assert not record.obstacles()


@NO_SHRINK_LIMIT
@given(written(), PIDS, PATH, FLAGS, SHORT_PATH, PATH, st.data())
def test_a_handover_there_and_back(
    made: Written, pid: int, emulator: str, flags: list[str], monitor: str, terminal: str, data: st.DataObject
) -> None:
    old = RuntimeRecord.parse(made.text.encode())
    new_threads = {vcpu: data.draw(PIDS) for vcpu, _ in old.vcpu_threads}
    there = RuntimeRecord.parse(
        old.handed_over(pid, new_threads, emulator, flags, monitor_path=monitor, terminals={"serial0": terminal})
    )
    wanted = replace(
        old,
        pid=pid,
        vcpu_threads=tuple((vcpu, new_threads[vcpu]) for vcpu, _ in old.vcpu_threads),
        emulator=emulator,
        flags=tuple(flags),
        monitor_path=monitor,
        terminals=(("serial0", terminal),) * 2,
    )
    assert said(there) == said(wanted)
    back = RuntimeRecord.parse(
        there.handed_over(
            old.pid,
            dict(old.vcpu_threads),
            old.emulator,
            old.flags,
            monitor_path=old.monitor_path,
            terminals=dict(old.terminals),
        )
    )
    assert back == old
    # The same but for how special characters were escaped, which is then as libvirt does it.
    assert unescaped(back.data) == unescaped(old.data)


def unescaped(data: bytes) -> bytes:
    for entity, character in ((b"&#39;", b"'"), (b"&apos;", b"'"), (b"&quot;", b'"'), (b"&gt;", b">")):
        data = data.replace(entity, character)
    return data


# --- damaged records


DAMAGE = st.tuples(st.integers(0, 12600), st.sampled_from(["cut", "set", "add"]), st.binary(min_size=1, max_size=3))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["q35-paused.xml", "pc-metadata.xml"]), st.lists(DAMAGE, max_size=3))
def test_damage_is_refused_or_carried_unchanged(name: str, damage: list[tuple[int, str, bytes]]) -> None:
    data = read(name)
    for place, kind, piece in damage:
        data = data[:place] + (b"" if kind == "cut" else piece) + data[place + (kind != "add") * len(piece) :]
    try:
        record = RuntimeRecord.parse(data)
    except RecordNotUnderstood:
        return
    assert record.data == data
    try:
        changed = record.handed_over(4999, threads(record), NEW_EMULATOR, record.flags)
    except RecordNotUnderstood:
        pytest.fail("a record that is understood could not be changed")
    assert said(RuntimeRecord.parse(changed)) == said(
        replace(record, pid=4999, vcpu_threads=tuple(threads(record).items()), emulator=NEW_EMULATOR)
    )


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RecordNotUnderstood):
        RuntimeRecord.parse(data)


# --- spans


def test_edits_that_overlap_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="overlap"):
        spliced(b"0123456789", [(Span(0, 5), b"a"), (Span(4, 6), b"b")])


@given(st.text())
def test_text_is_escaped_or_refused(text: str) -> None:
    try:
        assert not set(escaped(text)) & set(b"<>'\"")
    except ValueError:
        assert re.search("[\x00-\x1f\ud800-\udfff\ufffe\uffff]", text)

"""Settings, from TOML files; a wrong key or value is an error that names file and line."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self, get_args
from urllib.parse import parse_qsl

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from hostagent import config_files
from hostagent.agent_settings import AgentSettings
from hostagent.config_files import SettingsFile
from hostagent.errors import UsageError
from hostagent.plan import ClockPolicy
from hostagent.policy import (
    EXPECTED,
    NAME,
    NAMES_LIMIT,
    PRIORITY_LIMIT,
    Allowed,
    Layer,
    PolicyPart,
    Setting,
    is_guest_name,
    tcp_address,
)
from hostagent.setting_types import AbsolutePath, Command, Seconds, Table, Text, YesOrNo, absolute

DAY_SECONDS = 86400.0
OWN_COMPONENTS = ("qemu", "libvirtd", "kvm", "kernel", "all")
DEFAULT_PATH = Path("/etc/hostagent/hostagent.toml")

# What was elsewhere in earlier versions, and where it is now.
_MOVED: Mapping[tuple[str, ...], str] = {
    ("update", "budget_seconds"): "budget_seconds below [policy]",
    ("update", "priority"): "priority in a [[policy.guest]]",
    ("clock", "policy"): "clock below [policy]",
}


class DaemonControl(StrEnum):
    """How libvirt's daemon is stopped and started."""

    AUTO = "auto"  # systemd where systemd is init, else command
    SYSTEMD = "systemd"
    COMMAND = "command"


def _a_guest_name(name: str) -> str:
    if not is_guest_name(name):
        raise ValueError("no name of a guest")
    return name


_GuestName = Annotated[str, AfterValidator(_a_guest_name)]
_Method = Annotated[Allowed, Field(strict=False)]


class DaemonSettings(Table):
    """``[libvirt.daemon]``: the daemon that holds the QEMU driver."""

    control: Annotated[DaemonControl, Field(strict=False, description="auto, systemd or command")] = DaemonControl.AUTO
    start: Command = ("/usr/sbin/libvirtd", "--daemon")  # for control = "command"
    ready_seconds: Seconds = 30.0

    @field_validator("start")
    @classmethod
    def _starts_a_path(cls, start: tuple[str, ...]) -> tuple[str, ...]:
        absolute(Path(start[0]))
        return start

    @property
    def by_systemd(self) -> bool:
        """Whether systemd is to be asked; "auto" looks where sd_booted(3) looks."""
        if self.control is DaemonControl.AUTO:
            return Path("/run/systemd/system").is_dir()
        return self.control is DaemonControl.SYSTEMD


class LibvirtSettings(Table):
    """``[libvirt]``: how libvirt is reached, and which one there should be."""

    uri: Text = "qemu:///system"
    call_seconds: Seconds = 10.0  # deadline of one call
    release: Annotated[
        str,
        Field(
            pattern=r"^[0-9][0-9A-Za-z.+~:-]{0,63}$|^$",
            description="a version of libvirt's packages like '11.3', or its beginning, or ''",
        ),
    ] = ""  # that is gone to; what is installed if there is none
    daemon: Annotated[DaemonSettings, Field(description="a table")] = DaemonSettings()


class PathSettings(Table):
    """``[paths]``: where things are on this host."""

    state: AbsolutePath = Path("/var/lib/hostagent")
    held: AbsolutePath = Path("/run/hostagent/held")  # where libvirt's hook looks for guests that are held
    libvirt_run: AbsolutePath = Path("/run/libvirt/qemu")
    libvirt_cache: AbsolutePath = Path("/var/cache/libvirt/qemu")
    qemu_conf: AbsolutePath = Path("/etc/libvirt/qemu.conf")
    system_emulator: AbsolutePath = Path("/usr/bin/qemu-system-x86_64")
    apt_sources: AbsolutePath = Path("/etc/hostagent/qemu.list")  # for `qemu fetch`; the system's own if there is none


class SetupSettings(Table):
    """``[setup]``: what ``hostagent setup`` puts on a host whose qemu.conf does not say otherwise."""

    memory_backing_dir: AbsolutePath = Path("/var/lib/libvirt/ram")
    ram_size: Annotated[
        str,
        Field(
            pattern=r"^[1-9][0-9]*[%kmgKMG]?$",
            description="a tmpfs size like '50%', '64g' or a number of bytes",
        ),
    ] = "50%"
    ram_device: Annotated[
        str, Field(pattern=r"^(/dev/pmem[0-9]+)?$", description="a device like '/dev/pmem0', or ''")
    ] = ""  # persistent memory for guests' RAM, in the place of a tmpfs: it outlives the kernel


class UpdateSettings(Table):
    """``[update]``: limits of an update."""

    start_seconds: Seconds = 30.0  # a new QEMU must answer within
    copy_seconds: Seconds = 900.0  # RAM that is copied must have crossed once within; the guest runs
    converge_seconds: Seconds = 10.0  # and the rest of it, with libvirt's daemon away; the guest still runs
    adopt_definition: YesOrNo = True  # a guest whose RAM was copied into a file starts with such RAM from then on
    side_by_side: Annotated[
        int, Field(ge=0, le=64, description="a whole number from 0, which means as many as cores, to 64")
    ] = 0  # guests that are saved or restored at the same time, while something is swapped for the host
    rehearse: YesOrNo = True
    apparmor: YesOrNo = True  # take guests that AppArmor confines


class RebootSettings(Table):
    """``[reboot]``: how guests are updated that are shut down for it, and started anew."""

    shutdown_seconds: Seconds = 300.0  # for a guest to shut itself down
    boot_seconds: Seconds = 300.0  # and to show that it has booted
    force: YesOrNo = False  # end one that does not shut itself down: what it has not written to its disks is lost


class PolicySettings(Table):
    """What may be said of guests, in ``[policy]`` of all and in a ``[[policy.guest]]`` of some; see docs/policy.md."""

    allow: Annotated[
        tuple[_Method, ...] | None,
        Field(strict=False, description=f"a list, empty or with {EXPECTED[Setting.ALLOW]}"),
    ] = None
    budget_seconds: Annotated[Seconds | None, Field(description=EXPECTED[Setting.BUDGET])] = None
    clock: Annotated[ClockPolicy | None, Field(strict=False, description=EXPECTED[Setting.CLOCK])] = None
    priority: Annotated[
        int | None, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT, description=EXPECTED[Setting.PRIORITY])
    ] = None
    availability_set: Annotated[
        str | None, Field(pattern=f"^({NAME})?$", description=EXPECTED[Setting.AVAILABILITY_SET])
    ] = None
    update_domain: Annotated[str | None, Field(pattern=f"^({NAME})?$", description=EXPECTED[Setting.UPDATE_DOMAIN])] = (
        None
    )
    boot_tcp: Annotated[str | None, Field(description=EXPECTED[Setting.BOOT_TCP])] = None
    never_together: Annotated[
        tuple[_GuestName, ...] | None,
        Field(strict=False, max_length=NAMES_LIMIT, description=EXPECTED[Setting.NEVER_TOGETHER]),
    ] = None

    def part(self) -> PolicyPart:
        """As policies are made of."""
        together = self.never_together
        return PolicyPart(
            allow=None if self.allow is None else frozenset(self.allow),
            budget_seconds=self.budget_seconds,
            clock=self.clock,
            priority=self.priority,
            availability_set=self.availability_set,
            update_domain=self.update_domain,
            boot_tcp=self.boot_tcp,
            never_together=None if together is None else frozenset(together),
        )

    @field_validator("boot_tcp")
    @classmethod
    def _is_a_place(cls, place: str | None) -> str | None:
        if place and tcp_address(place) is None:
            raise ValueError("no place")
        return place


class GuestPolicySettings(PolicySettings):
    """``[[policy.guest]]``: what holds for guests of that name."""

    name: Annotated[str, Field(min_length=1, max_length=128, description="a guest's name, or a pattern like 'db*'")]


class PolicyTable(PolicySettings):
    """``[policy]``: what holds for guests that do not say it themselves."""

    guest: Annotated[
        tuple[GuestPolicySettings, ...], Field(strict=False, description="tables, each of them a [[policy.guest]]")
    ] = ()

    def layers(self) -> tuple[Layer, ...]:
        """Of all guests first, then those of some in their order: the last that fits counts."""
        some = (Layer(f"[[policy.guest]] {one.name}", one.part(), one.name) for one in self.guest)
        return (Layer("[policy]", self.part()), *some)


class ClockSettings(Table):
    """``[clock]``: how the guests' clocks are measured and set after a pause."""

    require_synchronised_host: YesOrNo = True
    agent_seconds: Seconds = 2.0  # one answer of a guest agent
    samples: Annotated[int, Field(ge=1, le=64, description="a whole number from 1 to 64")] = 8


class KernelSettings(Table):
    """``[kernel]``: the host's kernel."""

    release: Annotated[
        str,
        Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_~-]{0,63}$|^$", description="a release like '6.1.0-49-amd64', or ''"),
    ] = ""  # that is gone to; the newest that is installed if there is none
    takes_seconds: Seconds = 20.0  # from the old kernel's end to libvirt's daemon, for the first prediction


class Transport(StrEnum):
    """How a migrating guest's memory crosses, and how the two libvirts talk."""

    TLS = "tls"  # QEMU encrypts it; the other libvirt is reached by TLS or SSH
    SSH = "ssh"  # inside the connection of the two libvirts, which is SSH
    PLAIN = "plain"  # nobody encrypts it, and nobody proves who he is


_OVER: Mapping[Transport, tuple[str, ...]] = {
    Transport.TLS: ("qemu+tls", "qemu", "qemu+ssh", "qemu+libssh", "qemu+libssh2"),
    Transport.SSH: ("qemu+ssh", "qemu+libssh", "qemu+libssh2"),
}
# What may have nobody look at who the other host is (libvirt, "URIs"), and with which values it does not.
_UNSEEN: Mapping[str, frozenset[str]] = {
    "no_verify": frozenset(("0",)),
    "known_hosts_verify": frozenset(("normal",)),
}
_URI = r"[a-z0-9+]+://[A-Za-z0-9._~:/?=&%@\[\],+-]{1,500}"
Uri = Annotated[str, Field(pattern=f"^{_URI}$", description="a URI like 'qemu+tls://host2/system'")]
UriOrNone = Annotated[str, Field(pattern=f"^({_URI})?$", description="a URI, or ''")]


class PeerSettings(Table):
    """``[[peer]]``: another host that guests may migrate to; the first one that a guest fits is taken."""

    name: Annotated[
        str,
        Field(
            pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="a short name of letters, digits, '.', '_' and '-'"
        ),
    ]
    uri: Uri  # its libvirt, as hostagent and this host's libvirt reach it
    migrate_uri: UriOrNone = ""  # where QEMU sends to, "tcp://10.0.0.2"; "": its host's name
    transport: Annotated[Transport, Field(strict=False, description="tls, ssh or plain")] = Transport.TLS
    max_guests: Annotated[
        int, Field(ge=0, le=100_000, description="a whole number from 0, which means no limit, to 100000")
    ] = 0  # that may be on it, its own among them
    shared: Annotated[
        tuple[AbsolutePath, ...], Field(strict=False, description="a list of absolute paths of directories")
    ] = ()  # that are the same on both hosts
    # libvirt itself takes only file systems that it knows as shared, and disks that go past the page cache. true: take
    # what is in `shared` all the same. Whoever says so knows that both hosts see what is written at once.
    coherent: YesOrNo = False

    @model_validator(mode="after")
    def _transport_fits(self) -> Self:
        allowed = _OVER.get(self.transport)
        if allowed is not None:
            _require_over(allowed, self.uri, f"transport '{self.transport}', or another transport")
        return self


def _require_over(allowed: tuple[str, ...], uri: str, wish: str) -> None:
    """Raises PydanticCustomError unless the connection is of such a kind, and each end knows who the other one is."""
    if uri.partition("://")[0] not in allowed:
        raise PydanticCustomError("transport", f"a uri of {' or '.join(allowed)} for {wish}", {"uri": uri})
    for name, value in parse_qsl(uri.partition("?")[2], keep_blank_values=True):
        if value not in _UNSEEN.get(name.casefold(), (value,)):
            raise PydanticCustomError("transport", f"a uri without {name} for {wish}", {"uri": uri})


class MigrateSettings(Table):
    """``[migrate]``: how guests migrate to peers, and come back."""

    uri: UriOrNone = ""  # this host's libvirt, as the peers' libvirt reaches it; without it no guest comes back
    migrate_uri: UriOrNone = ""  # where a peer's QEMU sends to; "": this host's name
    comes_back: YesOrNo = Field(default=True, alias="return", description="true or false")  # once that is done
    copy_storage: YesOrNo = False  # copy disks that a peer does not see
    least_seconds: Seconds = 120.0  # what any guest is given to migrate within
    seconds_per_gib: Seconds = 60.0  # and what one of that much memory is
    downtime_seconds: Annotated[float, Field(gt=0, le=60, description="a number of seconds above 0, at most 60")] = 0.3
    auto_converge: YesOrNo = True  # slow a guest down that writes faster than its memory crosses
    call_seconds: Seconds = 10.0  # deadline of one call of a peer's libvirt
    end_seconds: Seconds = 60.0  # until a migration that was broken off has ended on both sides


class ComponentSettings(Table):
    """``[[component]]``: something of the host that its owner updates by commands, with guests held or not."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,30}$", description="a short name in small letters")]
    apply: Command
    verify: Command  # ends with exit status 0 if what is installed runs, and works
    roll_back: Command
    stage: Annotated[
        tuple[Text, ...], Field(strict=False, description="a list of texts: an absolute path and its arguments")
    ] = ()
    hold: YesOrNo = True  # whether no guest may run meanwhile
    command_seconds: Seconds = 60.0  # deadline of each command
    takes_seconds: Seconds = 5.0  # what apply and verify take, for the first prediction of pauses

    @field_validator("apply", "verify", "roll_back", "stage")
    @classmethod
    def _starts_a_path(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if words:
            absolute(Path(words[0]))
        return words

    @field_validator("name")
    @classmethod
    def _is_not_ours(cls, name: str) -> str:
        if name in OWN_COMPONENTS:
            raise ValueError("hostagent's own")
        return name


class RollSettings(Table):
    """``[roll]``: how an update goes over groups of guests, one after the other; see docs/update-domains.md."""

    max_unavailable: Annotated[
        int, Field(ge=0, le=1000, description="a whole number from 0, which means no limit, to 1000")
    ] = 0  # guests that are disturbed at the same time
    wait_seconds: Annotated[
        float, Field(ge=0, le=DAY_SECONDS, description=f"a number of seconds from 0 to {DAY_SECONDS:g}")
    ] = 0.0  # between a group that is well and the next one
    settle_seconds: Seconds = 30.0  # within which guests must be as they were, once they are updated


class HealthSettings(Table):
    """``[[health]]``: what has to answer after guests were updated, before others are."""

    availability_set: Annotated[
        str | None, Field(pattern=f"^{NAME}$", description=EXPECTED[Setting.AVAILABILITY_SET])
    ] = None
    guest: Annotated[_GuestName | None, Field(description="a guest's name, or a pattern of names like 'web*'")] = None
    tcp: Annotated[
        str | None,
        Field(
            max_length=300, description="a host and a port like '10.0.0.5:5432', 'db.example:5432' or '[fd00::5]:5432'"
        ),
    ] = None
    command: Annotated[
        tuple[Text, ...] | None,
        Field(strict=False, min_length=1, description="a list of texts: an absolute path and its arguments"),
    ] = None
    within_seconds: Seconds = 30.0

    @field_validator("tcp")
    @classmethod
    def _is_an_address(cls, text: str | None) -> str | None:
        if text is not None and tcp_address(text) is None:
            raise ValueError("no address")
        return text

    @field_validator("command")
    @classmethod
    def _starts_a_path(cls, words: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if words:
            absolute(Path(words[0]))
        return words

    @model_validator(mode="after")
    def _is_one_of_each(self) -> Self:
        of_whom = (self.availability_set, self.guest)
        what = (self.tcp, self.command)
        if any(sum(one is not None for one in pair) != 1 for pair in (of_whom, what)):
            raise ValueError("not one of each")
        return self

    @property
    def of(self) -> str:
        """Whose it is, in words."""
        return f"guest {self.guest}" if self.guest is not None else f"availability set {self.availability_set}"

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of ``tcp``."""
        return None if self.tcp is None else tcp_address(self.tcp)


class MetricsSettings(Table):
    """``[metrics]``: what Prometheus is told."""

    guest_names: YesOrNo = True  # false: figures of single guests are merged, under no name
    update_domain: Annotated[str, Field(pattern=f"^({NAME})?$", description=EXPECTED[Setting.UPDATE_DOMAIN])] = (
        ""  # of this host, among others that are not to be disturbed at the same time
    )


class Config(Table):
    """All settings; every one has a default."""

    libvirt: Annotated[LibvirtSettings, Field(description="a table")] = LibvirtSettings()
    paths: Annotated[PathSettings, Field(description="a table")] = PathSettings()
    setup: Annotated[SetupSettings, Field(description="a table")] = SetupSettings()
    update: Annotated[UpdateSettings, Field(description="a table")] = UpdateSettings()
    clock: Annotated[ClockSettings, Field(description="a table")] = ClockSettings()
    kernel: Annotated[KernelSettings, Field(description="a table")] = KernelSettings()
    reboot: Annotated[RebootSettings, Field(description="a table")] = RebootSettings()
    policy: Annotated[PolicyTable, Field(description="a table")] = PolicyTable()
    migrate: Annotated[MigrateSettings, Field(description="a table")] = MigrateSettings()
    peer: Annotated[
        tuple[PeerSettings, ...],
        Field(strict=False, description="tables with different names, each of them a [[peer]]"),
    ] = ()
    component: Annotated[
        tuple[ComponentSettings, ...], Field(strict=False, description="tables, each of them a [[component]]")
    ] = ()
    roll: Annotated[RollSettings, Field(description="a table")] = RollSettings()
    agent: Annotated[AgentSettings, Field(description="a table")] = AgentSettings()
    health: Annotated[
        tuple[HealthSettings, ...],
        Field(
            strict=False,
            description="tables, each of them a [[health]] with availability_set or guest, and with tcp or command",
        ),
    ] = ()
    metrics: Annotated[MetricsSettings, Field(description="a table")] = MetricsSettings()

    @field_validator("component")
    @classmethod
    def _each_once(cls, found: tuple[ComponentSettings, ...]) -> tuple[ComponentSettings, ...]:
        if len({one.name for one in found}) < len(found):
            raise ValueError("one of that name twice")
        return found

    @field_validator("peer")
    @classmethod
    def _each_peer_once(cls, found: tuple[PeerSettings, ...]) -> tuple[PeerSettings, ...]:
        if len({one.name for one in found}) < len(found):
            raise ValueError("one of that name twice")
        return found

    @field_validator("peer")
    @classmethod
    def _come_back_as_they_went(cls, found: tuple[PeerSettings, ...], info: ValidationInfo) -> tuple[PeerSettings, ...]:
        """What crosses encrypted on the way there does so on the way back."""
        migrate = info.data.get("migrate")
        if isinstance(migrate, MigrateSettings) and migrate.comes_back and migrate.uri:
            for one in found:
                if one.transport is not Transport.PLAIN:
                    _require_over(_OVER[Transport.TLS], migrate.uri, f"the way back, [migrate], from {one.name}")
        return found

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read the file given, else the default one, and its drop-ins; UsageError says what is wrong where.

        A file that was given must be there, or a drop-in of it; without the default one there are defaults.
        """
        files = config_files.read(path if path is not None else DEFAULT_PATH)
        if path is not None and not files:
            raise UsageError(f"reading {path}", expected="a configuration file", found="no such file")
        try:
            return cls.model_validate(config_files.merge(files))
        except ValidationError as error:
            raise _explain(cls, files, error) from error


def parse_duration(text: str) -> float:
    """Seconds of ``10s``, ``500ms``, ``1.5m`` or ``1h``; UsageError otherwise."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)", text.strip(), re.ASCII)
    if found is None or float(found[1]) <= 0:
        raise UsageError(
            "reading a duration", expected="a number above 0 and ms, s, m or h, like 10s", found=repr(text)
        )
    return float(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]


def _explain(model: type[BaseModel], files: Sequence[SettingsFile], error: ValidationError) -> UsageError:
    """The first error of the files, in words: where it is and what is allowed there."""
    places = [(config_files.blame(files, _written(fault), _earlier(fault)), fault) for fault in error.errors()]
    (number, line), fault = min(places, key=lambda place: place[0])
    keys = _keys(fault["loc"])
    table, allowed = _walk(model, keys)
    where = f"[{'.'.join(keys[:-1])}]" if keys[:-1] else "the file's top level"
    doing = f"reading {files[number].path}, line {line}"
    if fault["type"] == "extra_forbidden":
        known = _fields(table)
        near = difflib.get_close_matches(keys[-1], known, n=1)
        return UsageError(
            doing,
            expected=f"one of {', '.join(known)} in {where}",
            found=f"unknown key '{keys[-1]}'",
            hint=_hint(keys, near),
        )
    if fault["type"] in ("transport", "agent"):
        return UsageError(doing, expected=fault["msg"], found=fault["ctx"]["uri"])
    found = "nothing" if fault["type"] == "missing" else _shown(fault["input"])
    return UsageError(doing, expected=f"{'.'.join(keys)} = {allowed}", found=found)


def _written(fault: ErrorDetails) -> list[str]:
    """The key that is at fault; the table that lacks it if it is missing."""
    keys = _keys(fault["loc"])
    return keys[:-1] if fault["type"] == "missing" else keys


def _earlier(fault: ErrorDetails) -> int:
    """How many tables come before the one that is wrong as a whole."""
    last = fault["loc"][-1]
    return last if isinstance(last, int) and fault["type"] == "value_error" else 0


def _hint(keys: list[str], near: list[str]) -> str | None:
    if moved := _MOVED.get(tuple(keys)):
        return f"it is {moved} now"
    return f"did you mean '{near[0]}'?" if near else None


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The key of a fault; numbers are places in its list."""
    return [part for part in place if isinstance(part, str)]


def _shown(value: object) -> str:
    try:
        return json.dumps(value, default=str)[:200]
    except RecursionError:  # dotted keys nest tables deeper than json goes
        return "values nested too deeply"


def _walk(model: type[BaseModel], keys: list[str]) -> tuple[type[BaseModel], str]:
    """The table that holds the last of `keys`, and what that key may be, in words."""
    for key in keys[:-1]:
        annotation: Any = _fields(model)[key].annotation
        annotation = next(iter(get_args(annotation)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    field = _fields(model).get(keys[-1])
    return model, (field.description or "") if field is not None else ""


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A table's keys, as they are written."""
    return {field.alias or name: field for name, field in model.model_fields.items()}

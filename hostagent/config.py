"""Settings, from TOML files; a wrong key or value is an error that names file and line."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from hostagent import config_files
from hostagent.agent_settings import AgentSettings
from hostagent.config_faults import explain
from hostagent.errors import UsageError
from hostagent.peer_settings import MigrateSettings, PeerSettings, require_the_way_back
from hostagent.policy import EXPECTED, NAME, Setting, tcp_address
from hostagent.policy_settings import GuestName, PolicyTable
from hostagent.setting_types import AbsolutePath, Command, Seconds, Table, Text, YesOrNo, absolute

DAY_SECONDS = 86400.0
OWN_COMPONENTS = ("qemu", "libvirtd", "kvm", "kernel", "all")
DEFAULT_PATH = Path("/etc/hostagent/hostagent.toml")


class DaemonControl(StrEnum):
    """How libvirt's daemon is stopped and started."""

    AUTO = "auto"  # systemd where systemd is init, else command
    SYSTEMD = "systemd"
    COMMAND = "command"


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
        int, Field(ge=0, le=64, description="a whole number from 0, which means by the number of cores, to 64")
    ] = 0  # guests that are held, or shut down and started, at the same time; 0: four a core, and one
    rehearse: YesOrNo = True
    apparmor: YesOrNo = True  # take guests that AppArmor confines


class RebootSettings(Table):
    """``[reboot]``: how guests are updated that are shut down for it, and started anew."""

    shutdown_seconds: Seconds = 300.0  # for a guest to shut itself down
    boot_seconds: Seconds = 300.0  # and to show that it has booted
    force: YesOrNo = False  # end one that does not shut itself down: what it has not written to its disks is lost


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


class ComponentSettings(Table):
    """``[[component]]``: something of the host that its owner updates by commands, with guests held or not."""

    name: Annotated[
        str,
        Field(
            pattern="^[a-z][a-z0-9-]{0,30}$",
            description=f"a short name in small letters, other than {', '.join(OWN_COMPONENTS)}",
        ),
    ]
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
    guest: Annotated[GuestName | None, Field(description="a guest's name, or a pattern of names like 'web*'")] = None
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
        migrate = info.data.get("migrate")
        if isinstance(migrate, MigrateSettings):
            require_the_way_back(migrate, found)
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
            raise explain(cls, files, error) from error


def parse_duration(text: str, doing: str = "reading a duration") -> float:
    """Seconds of ``10s``, ``500ms``, ``1.5m`` or ``1h``; UsageError otherwise."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)", text.strip(), re.ASCII)
    if found is None or float(found[1]) <= 0:
        raise UsageError(doing, expected="a number above 0 and ms, s, m or h, like 10s", found=repr(text))
    return float(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]

"""hostagent recover --at-boot: what is done before libvirt's daemon starts, and that it never waits for more."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from called import Caller
from pydantic import TypeAdapter

from hostagent.components.kernel import KernelComponent
from hostagent.config import Config
from hostagent.errors import Failed
from hostagent.hypervisor import ProcessId
from hostagent.plan import Technique
from hostagent.session import after_boot
from hostagent.update.guest_hold import HoldNotes, SavedImage
from hostagent.update.held import Held, HeldRam
from hostagent.update.journal import Entry, Kind, SqliteJournal
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Its end of the channel."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield channel


def test_libvirts_daemon_may_start_then(hostagent: Caller, systemd: socket.socket) -> None:
    result = hostagent("recover", "--at-boot")
    assert (result.exit_code, result.stdout) == (0, "Nothing was open.\n")
    assert systemd.recv(100) == b"READY=1"


def test_it_may_start_also_when_something_went_wrong(
    hostagent: Caller, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_boot(_config: object) -> None:
        raise Failed("mounting /dev/pmem0 for guests' RAM", expected="that persistent memory", found="no such device")

    monkeypatch.setattr("hostagent.cli.recover.after_boot", after_boot)
    result = hostagent("recover", "--at-boot")
    assert result.exit_code == 0
    assert "found no such device" in result.stderr
    assert systemd.recv(100) == b"READY=1"


def test_a_recovery_by_hand_tells_nobody(hostagent: Caller, systemd: socket.socket) -> None:
    assert hostagent("recover").exit_code == 0
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


@dataclass
class Booted:
    """A host whose guests have their RAM on persistent memory; web1 is held, by an update of the kernel."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    mounted: list[bool] = field(default_factory=list)  # whether it was made anew
    mount_fails: bool = False

    def __post_init__(self) -> None:
        paths = {"state": self.root / "state", "held": self.root / "held", "libvirt_run": self.root / "run"}
        self.config = Config.model_validate({"paths": paths, "setup": {"ram_device": "/dev/pmem0"}})
        kernel = KernelComponent(self.root / "state" / "kept" / "kernel", cmdline=self.root / "cmdline")
        self.cmdline("quiet")
        wanted = SimpleNamespace(qemu_uid=64055, qemu_gid=103)
        self.monkeypatch.setattr("hostagent.session.setup_host.wanted_on_this_host", lambda *_: wanted)
        self.monkeypatch.setattr("hostagent.session.wiring.kernel_of", lambda _: kernel)
        self.monkeypatch.setattr("hostagent.session.mount_ram", self._mount)

    def _mount(self, _device: Path, _target: Path, _uid: int, _gid: int, *, fresh: bool) -> None:
        if self.mount_fails:
            raise Failed("mounting /dev/pmem0 for guests' RAM", expected="that memory", found="no such device")
        self.mounted.append(fresh)

    def cmdline(self, words: str) -> None:
        (self.root / "cmdline").write_text(f"{words}\n")

    def hold(self, *, leap: str) -> None:
        """The update as the old kernel has left it, and what the new one was started for."""
        kept = self.root / "state" / "kept" / "kernel"
        kept.mkdir(parents=True)
        (kept / "leap.json").write_text(leap)
        held = Held("web1", "u1", "token", "/ram/libvirt/qemu", "web1", 0, 0, (HeldRam("pc.ram", "/ram/pin"),))
        image = SavedImage("/none")
        notes = HoldNotes(ProcessId(1, 1), "<domain/>", "/qemu", (), held, image, image, image)
        guest = OrderedGuest(uuid="uuid", name="web1", before=None, technique=Technique.HOLD, budget_seconds=9.0)
        order = UpdateOrder(kind=OrderKind.UPDATE, component="kernel", swaps=("kernel",), guests=(guest,), pid=1)
        journal = SqliteJournal(self.root / "state" / "journal.sqlite", "the old kernel's", lambda: 0.0)
        journal.append(
            "u1",
            Entry(Kind.UPDATE_BEGUN, body=order.body()),
            Entry(Kind.GUEST_BEGUN, "uuid", body={"name": "web1"}),
            Entry(Kind.STEP_BEGUN, "uuid", "prepare"),
            Entry(Kind.NOTED, "uuid", body=TypeAdapter(HoldNotes).dump_python(notes, mode="json")),
            Entry(Kind.STEP_BEGUN, step="swap kernel"),
        )
        journal.close()

    @property
    def told(self) -> list[str]:
        return sorted(path.name for path in (self.root / "held").glob("*"))


@pytest.fixture
def booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Booted:
    (tmp_path / "state").mkdir()
    return Booted(tmp_path, monkeypatch)


LEAP = '{"secret": "5", "build": {"release": "6.12", "build": "#1"}, "image": "/boot/vmlinuz-6.12"}'


@pytest.mark.parametrize(
    ("cmdline", "leap", "fresh", "told"),
    [
        ("quiet hostagent.swap=5", LEAP, False, ["web1.held"]),
        ("quiet hostagent.swap=5", "{", False, ["web1.held"]),
        ("quiet hostagent.swap=4", LEAP, True, []),
        ("quiet", LEAP, True, []),
        ("quiet", "{", True, []),
    ],
    ids=["a leap", "perhaps a leap", "another leap", "firmware", "firmware, and a damaged file"],
)
def test_ram_is_made_anew_unless_this_kernel_was_leapt_to(
    booted: Booted, cmdline: str, leap: str, fresh: bool, told: list[str]
) -> None:
    booted.hold(leap=leap)
    booted.cmdline(cmdline)
    after_boot(booted.config)
    assert (booted.mounted, booted.told) == ([fresh], told)


def test_ram_that_nobody_is_held_for_is_made_anew(booted: Booted) -> None:
    """A kexec of the owner's own, with the words of the leap before it: what other guests left would fill it."""
    booted.cmdline("quiet hostagent.swap=5")
    after_boot(booted.config)
    SqliteJournal(booted.root / "state" / "journal.sqlite", "before", lambda: 0.0).close()
    after_boot(booted.config)
    assert booted.mounted == [True, True]


def test_nobody_else_starts_them_also_when_their_ram_cannot_be_mounted(booted: Booted) -> None:
    booted.hold(leap=LEAP)
    booted.cmdline("quiet hostagent.swap=5")
    booted.mount_fails = True
    with pytest.raises(Failed, match="no such device"):
        after_boot(booted.config)
    assert booted.told == ["web1.held"]

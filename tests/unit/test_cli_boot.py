"""hostagent recover --at-boot: what is done before libvirt's daemon starts, and that it never waits for more."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from called import Caller

from hostagent.errors import Failed


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


@pytest.mark.parametrize(("leapt", "fresh"), [(True, False), (False, True)])
def test_ram_is_made_anew_unless_this_kernel_was_leapt_to(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch, leapt: bool, fresh: bool
) -> None:
    mounted: list[object] = []
    monkeypatch.setattr(
        "hostagent.session.mount_ram", lambda device, target, uid, gid, fresh: mounted.append((str(device), fresh))
    )
    monkeypatch.setattr("hostagent.components.kernel.KernelComponent.was_leapt_to", lambda _: leapt)
    hostagent.settings.write_text(f'{hostagent.settings.read_text()}[setup]\nram_device = "/dev/pmem0"\n')
    monkeypatch.setattr(
        "hostagent.session.setup_host.wanted_on_this_host", lambda *_: SimpleNamespace(qemu_uid=64055, qemu_gid=103)
    )
    assert hostagent("recover", "--at-boot").exit_code == 0
    assert mounted == [("/dev/pmem0", fresh)]

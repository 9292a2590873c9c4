"""QEMU alone, without libvirt and without hostagent: the same test guest, moved as fast as QEMU itself can.

What is measured here is what nobody can be faster than. RAM is a shared file that stays where it is
(x-ignore-shared); the tap is the guest's own and is given to each QEMU as a descriptor.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from qemu.qmp.legacy import QEMUMonitorProtocol

from tests.bench.guest_spec import BRIDGE, GUEST_FILES, GuestSpec
from tests.bench.host import DISK_SIZE, RAM

LIMIT = 60.0  # seconds for anything that QEMU is asked for
POLL = 0.0005
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_KEEPS_RAM: Mapping[str, bool] = {"x-ignore-shared": True, "events": True}


class Qemu:
    """One process, and its monitor."""

    def __init__(self, guest: RawGuest, emulator: str, *, waits: bool) -> None:
        self._socket = guest.folder / f"{next(guest.numbers)}.qmp"
        incoming = ["-incoming", "defer"] if waits else []
        self._process = subprocess.Popen(
            [emulator, *guest.arguments, "-qmp", f"unix:{self._socket},server=on,wait=off", "-S", *incoming],
            stdin=subprocess.DEVNULL,
            pass_fds=(guest.tap,),
        )
        self._monitor = QEMUMonitorProtocol(str(self._socket))
        ends = time.monotonic() + LIMIT
        while not self._socket.exists():
            assert self._process.poll() is None, f"{emulator} ended with {self._process.returncode}"
            assert time.monotonic() < ends, f"expected {emulator} to listen"
            time.sleep(POLL)
        self._monitor.settimeout(LIMIT)
        self._monitor.connect()

    def ask(self, command: str, **arguments: object) -> object:
        return self._monitor.cmd(command, **arguments)

    def keeps_ram(self) -> None:
        """From now on a migration leaves shared RAM where it is."""
        states = [{"capability": name, "state": state} for name, state in _KEEPS_RAM.items()]
        self.ask("migrate-set-capabilities", capabilities=states)

    def waits_for(self, event: str, **wanted: object) -> float:
        """Until QEMU says so; when that was, by its own stamp: seconds since 1970."""
        ends = time.monotonic() + LIMIT
        while True:
            for said in self._monitor.get_events(wait=max(0.001, ends - time.monotonic())):
                data = said.get("data", {})
                assert data.get("status") != "failed", said
                if said["event"] == event and all(data.get(name) == value for name, value in wanted.items()):
                    stamp = said["timestamp"]
                    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6

    def forget_events(self) -> None:
        self._monitor.clear_events()

    def quit(self) -> None:
        """End it, and see it gone."""
        self.ask("quit")
        with suppress(EOFError, OSError):  # it may have hung up already
            self._monitor.close()
        self._process.wait(LIMIT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class RawGuest:
    """`with RawGuest(spec, emulator) as guest:` boots one; its RAM's file and its tap are there as long as it is."""

    spec: GuestSpec
    emulator: str
    numbers: Iterator[int] = field(default_factory=count)
    tap: int = -1
    qemu: Qemu | None = None

    @property
    def folder(self) -> Path:
        return RAM / f"raw-{self.spec.index}"

    @property
    def arguments(self) -> list[str]:
        """All but what differs between one that starts and one that waits."""
        spec, size = self.spec, f"{self.spec.memory_mib}M"
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-name", spec.name),
            *("-machine", f"{spec.machine},memory-backend=ram", "-accel", "kvm" if _has_kvm() else "tcg", "-m", size),
            *("-object", f"memory-backend-file,id=ram,size={size},mem-path={self.folder / 'ram'},share=on"),
            *("-smp", str(spec.vcpus)),
            *("-kernel", str(GUEST_FILES / "vmlinuz"), "-initrd", str(GUEST_FILES / "initramfs")),
            *("-append", spec.kernel_command_line, "-serial", f"file:{self.folder / 'console'}"),
            *("-netdev", f"tap,id=net,fd={self.tap},vhost=off", "-device", f"virtio-net-pci,netdev=net,mac={spec.mac}"),
            *("-blockdev", f"file,node-name=file,filename={self.folder / 'disk'}"),
            *("-blockdev", "qcow2,node-name=disk,file=file", "-device", "virtio-blk-pci,drive=disk"),
        ]

    def __enter__(self) -> Self:
        self.folder.mkdir()
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", str(self.folder / "disk"), DISK_SIZE]
        subprocess.run(disk, check=True, stdin=subprocess.DEVNULL)
        self.tap = _tap(self._name)
        subprocess.run(["ip", "link", "set", self._name, "master", BRIDGE, "up"], check=True, stdin=subprocess.DEVNULL)
        self.qemu = Qemu(self, self.emulator, waits=False)
        self.qemu.ask("cont")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.qemu is not None:
            self.qemu.kill()
        os.close(self.tap)
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    @property
    def _name(self) -> str:
        return f"raw{self.spec.index}"

    @property
    def filled(self) -> bool:
        """Whether its RAM holds as much as it is to fill."""
        return (self.folder / "ram").stat().st_blocks * 512 >= self.spec.fill_mib << 20

    def hand_over(self, emulator: str) -> float:
        """To another QEMU that waits beside it; from the last instruction of one to the first of the other, seconds."""
        assert self.qemu is not None
        with self._beside(emulator) as new:
            path = self.folder / "state"
            new.ask("migrate-incoming", uri=f"unix:{path}")
            self.qemu.forget_events()
            self.qemu.ask("migrate", uri=f"unix:{path}")
            new.waits_for("MIGRATION", status="completed")
            new.ask("cont")
            resumed, stopped = new.waits_for("RESUME"), self.qemu.waits_for("STOP")
            self.qemu.quit()
        self.qemu = new
        return resumed - stopped

    def save_and_load(self, emulator: str) -> float:
        """By way of a file: stopped, saved, ended, started, loaded."""
        assert self.qemu is not None
        path = self.folder / "state"
        self.qemu.keeps_ram()
        self.qemu.forget_events()
        self.qemu.ask("stop")
        stopped = self.qemu.waits_for("STOP")
        self.qemu.ask("migrate", uri=f"exec:cat > {path}")
        self.qemu.waits_for("MIGRATION", status="completed")
        self.qemu.quit()
        self.qemu = None
        self.qemu = new = Qemu(self, emulator, waits=True)
        new.keeps_ram()
        new.ask("migrate-incoming", uri=f"exec:cat {path}")
        new.waits_for("MIGRATION", status="completed")
        new.ask("cont")
        return new.waits_for("RESUME") - stopped

    @contextmanager
    def _beside(self, emulator: str) -> Iterator[Qemu]:
        """Everything that can be done while the guest runs."""
        assert self.qemu is not None
        new = Qemu(self, emulator, waits=True)
        try:
            self.qemu.keeps_ram()
            new.keeps_ram()
            yield new
        except BaseException:
            new.kill()
            raise


def _tap(name: str) -> int:
    """A tap without the header of virtio-net: two QEMUs could not agree on its length."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def _has_kvm() -> bool:
    return Path("/dev/kvm").exists()

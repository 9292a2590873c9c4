"""QEMU alone, without libvirt and without hostagent: the same test guest, moved as fast as QEMU itself can.

What is measured here is what nobody can be faster than. RAM is a shared file that stays where it is
(x-ignore-shared), or with `cpr` a memfd that the new QEMU is handed (docs/devel/migration/CPR.rst: QEMU 10.0 and newer
on both sides); the tap is the guest's own and is given to each QEMU as a descriptor. The disk is where libvirt's guests
have theirs: how long it takes to be flushed is in every pause.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, dropwhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from qemu.qmp import ConnectError
from qemu.qmp.legacy import QEMUMonitorProtocol

from tests.bench.cost import wait
from tests.bench.guest_spec import BRIDGE, GuestSpec
from tests.bench.host import DISK_SIZE, RAM

LIMIT = 60.0  # seconds for anything that QEMU is asked for
BOOT_LIMIT = LIMIT * 5
POLL = 0.0005
WAITING = 1.0  # a new QEMU beside the old one: one that has just started still is in the processor's caches
_DEFERRED = ("-incoming", "defer")
_ALONE = ("-S", "-no-shutdown", "-no-user-config", "-nodefaults")  # options without a value
_LEFT_OUT = ("-mon", "-sandbox")  # in the sandbox QEMU could not start what it saves through
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_KEEPS_RAM: Mapping[str, bool] = {"x-ignore-shared": True, "events": True}


class Qemu:
    """One process, and its monitor."""

    def __init__(self, guest: RawGuest, emulator: str, *incoming: str) -> None:
        number = next(guest.numbers)
        self._socket = guest.folder / f"{number}.qmp"
        self._emulator = emulator
        self._process = subprocess.Popen(
            [emulator, *guest.arguments(number), "-qmp", f"unix:{self._socket},server=on,wait=off", "-S", *incoming],
            stdin=subprocess.DEVNULL,
            pass_fds=(guest.tap,),
        )
        self._monitor = self._made_monitor()
        self._said: list[Mapping[str, Any]] = []

    def connect(self) -> Self:
        """To its monitor, as soon as it listens."""
        self.wait_for(self._socket)
        ends = time.monotonic() + LIMIT
        while True:
            try:
                self._monitor.connect()
                return self
            except ConnectError:  # a socket has its name before anybody listens at it
                assert time.monotonic() < ends, f"expected {self._emulator} to listen at {self._socket}"
            time.sleep(POLL)
            self._monitor = self._made_monitor()

    def _made_monitor(self) -> QEMUMonitorProtocol:
        made = QEMUMonitorProtocol(str(self._socket))
        made.settimeout(LIMIT)
        return made

    def wait_for(self, path: Path) -> None:
        """Until it has made that socket."""
        ends = time.monotonic() + LIMIT
        while not path.exists():
            assert self._process.poll() is None, f"{self._emulator} ended with {self._process.returncode}"
            assert time.monotonic() < ends, f"expected {self._emulator} to listen at {path}"
            time.sleep(POLL)

    @property
    def resident(self) -> int:
        """Bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

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
            for said in self._said:
                data = said.get("data", {})
                assert data.get("status") != "failed", said
                if said["event"] == event and all(data.get(name) == value for name, value in wanted.items()):
                    stamp = said["timestamp"]
                    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
            self._said += self._monitor.get_events(wait=max(0.001, ends - time.monotonic()))

    def forget_events(self) -> None:
        self._monitor.clear_events()
        self._said.clear()

    def quit(self) -> None:
        """End it, and see it gone."""
        self.ask("quit")
        with suppress(EOFError, OSError):  # it may have hung up already
            self._monitor.close()
        self._process.wait(LIMIT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(EOFError, OSError):  # it has hung up
            self._monitor.close()


@dataclass
class RawGuest:
    """`with RawGuest(spec, emulator) as guest:` boots one; its RAM's file and its tap are there as long as it is."""

    spec: GuestSpec
    emulator: str
    native: str  # the command line that libvirt would start it by
    cpr: bool = False
    numbers: Iterator[int] = field(default_factory=count)
    tap: int = -1
    qemu: Qemu | None = None

    @property
    def folder(self) -> Path:
        return RAM / f"raw-{self.spec.index}"

    def arguments(self, number: int) -> list[str]:
        """libvirt's for such a guest, with what it has opened for QEMU put in its place; of the QEMU of that number."""
        begins_with_environment = shlex.split(self.native)
        words = dropwhile(lambda word: word.partition("=")[0].isidentifier(), begins_with_environment)
        next(words)
        found = []
        for option in words:
            if option in _ALONE:
                found += [] if option == "-S" else [option]
                continue
            value = next(words)
            if option in _LEFT_OUT or any(name in value for name in ("masterKey", "charmonitor")):
                continue
            found += [option, self._changed(option, value, number)]
        return found

    def _changed(self, option: str, value: str, number: int) -> str:
        if option == "-machine":
            return f"{value}{',aux-ram-share=on' if self.cpr else ''}"
        if option == "-chardev":
            return re.sub(r"path=[^,]+", f"path={self.folder / str(number)}", value, count=1)
        if option not in ("-object", "-netdev"):
            return value
        told = json.loads(value)
        if option == "-netdev":
            told["fd"] = str(self.tap)
        elif "mem-path" in told and self.cpr:
            del told["mem-path"]
            told["qom-type"] = "memory-backend-memfd"
        elif "mem-path" in told:
            told["mem-path"] = str(self.folder / "ram")
        return json.dumps(told)

    def __enter__(self) -> Self:
        self.folder.mkdir()
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", str(self.spec.disk_path), DISK_SIZE]
        subprocess.run(disk, check=True, stdin=subprocess.DEVNULL)
        self.tap = _tap(self._name)
        subprocess.run(["ip", "link", "set", self._name, "master", BRIDGE, "up"], check=True, stdin=subprocess.DEVNULL)
        self.qemu = Qemu(self, self.emulator).connect()
        self.qemu.ask("cont")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.qemu is not None:
            self.qemu.kill()
        os.close(self.tap)
        for path in (*self.folder.iterdir(), self.spec.disk_path):
            path.unlink()
        self.folder.rmdir()

    @property
    def _name(self) -> str:
        return f"raw{self.spec.index}"

    def wait_filled(self) -> None:
        """Until its RAM holds as much as it is to fill."""
        wait(lambda: self._resident >= self.spec.fill_mib << 20, f"{self._name} to fill its RAM", BOOT_LIMIT)

    @property
    def _resident(self) -> int:
        return self.qemu.resident if self.qemu else 0

    def hand_over(self, emulator: str) -> float:
        """To another QEMU that waits beside it; seconds, as `switch`."""
        with self.beside(emulator) as new:
            time.sleep(WAITING)
            return self.switch(new)

    def switch(self, new: Qemu) -> float:
        """To the one that waits beside it; from the last instruction of one to the first of the other, seconds."""
        assert self.qemu is not None
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

    def hand_over_by_cpr(self, emulator: str) -> float:
        """The same with the new QEMU given the RAM and all else that need not be sent, by QEMU itself; seconds."""
        assert self.qemu is not None
        main, early = self.folder / "main", self.folder / "early"
        for path in (main, early):
            path.unlink(missing_ok=True)
        told = {"channel-type": "cpr", "addr": _unix(early)}
        new = Qemu(self, emulator, "-incoming", f"unix:{main}", "-incoming", json.dumps(told))
        try:
            new.wait_for(early)
            self.qemu.forget_events()
            self.qemu.ask("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
            self.qemu.ask("migrate-set-parameters", mode="cpr-transfer")
            self.qemu.ask("migrate", channels=[{"channel-type": "main", "addr": _unix(main)}, told])
            new.connect()  # its monitor listens only now
            self.qemu.waits_for("MIGRATION", status="completed")
            while new.ask("query-status") != {"status": "paused", "running": False}:
                time.sleep(POLL)
            new.ask("cont")
            resumed, stopped = new.waits_for("RESUME"), self.qemu.waits_for("STOP")
            self.qemu.quit()
        except BaseException:
            new.kill()
            raise
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
        self.qemu = new = Qemu(self, emulator, *_DEFERRED).connect()
        new.keeps_ram()
        new.ask("migrate-incoming", uri=f"exec:cat {path}")
        new.waits_for("MIGRATION", status="completed")
        new.ask("cont")
        return new.waits_for("RESUME") - stopped

    @contextmanager
    def beside(self, emulator: str) -> Iterator[Qemu]:
        """Everything that can be done while the guest runs."""
        assert self.qemu is not None
        new = Qemu(self, emulator, *_DEFERRED).connect()
        try:
            self.qemu.keeps_ram()
            new.keeps_ram()
            yield new
        except BaseException:
            new.kill()
            raise


def _unix(path: Path) -> dict[str, str]:
    return {"transport": "socket", "type": "unix", "path": str(path)}


def _tap(name: str) -> int:
    """A tap without the header of virtio-net: two QEMUs could not agree on its length."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap

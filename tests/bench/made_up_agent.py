"""The service on a made-up host with many guests: python -m tests.bench.made_up_agent FOLDER GUESTS LOOK_SECONDS

Everything of it is real but libvirt: what that would say of the guests is made anew for each look, as it comes over a
connection. Its state is in FOLDER.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hostagent import wiring
from hostagent.agent.launching import AsChild
from hostagent.agent.log import Writer, log_to_stdout
from hostagent.agent.notify import Notify
from hostagent.agent.service import Agent
from hostagent.config import Config
from hostagent.facts import Component, Freshness, Guest, GuestState, Host, QemuProcess, QemuTree, RamRoom, Version
from hostagent.hypervisor.events import Event, LineEvent
from hostagent.hypervisor.guest_process import words_of
from hostagent.hypervisor.understood import Readings
from hostagent.observed import Observed, observe
from hostagent.planning.guest_policy import Policies
from hostagent.update.journal_past import JournalPast
from hostagent.update.journal_tail import JournalTail

SAMPLES = Path(__file__).parents[1] / "unit" / "samples"
OF_ALL_KINDS = ("q35-rich", "q35-plain", "pc-rich", "tuned", "memfd", "anonymous", "numa", "vnc")
QEMU = QemuTree("system", Version(7, 2, 22), "1:7.2+dfsg-7", "/usr/bin/qemu-system-x86_64")
NEWER = QemuTree("10.0.2", Version(10, 0, 2), "1:10.0.2+ds-2", "/var/lib/hostagent/qemu/10.0.2/q")


@dataclass(frozen=True)
class Told:
    """What libvirt and the kernel tell of a guest."""

    name: str
    uuid: str
    live_xml: bytes
    argv: bytes


@dataclass
class MadeUpHost:
    """Whose guests stay as they are, but for the host's memory."""

    folder: Path
    guests: tuple[Told, ...]
    _readings: Readings = field(default_factory=Readings)
    _asked: int = 0

    @classmethod
    def of(cls, folder: Path, count: int) -> MadeUpHost:
        return cls(folder, tuple(_told(number) for number in range(count)))

    def look(self, past: JournalPast) -> tuple[Host, Observed]:
        """As wiring.Looks has it."""
        self._asked += 1
        seen = Host(
            hostname="h1",
            kernel="6.1",
            boot_id="b",
            libvirt=Version(9, 0),
            libvirt_uri="qemu:///system",
            qemu=(QEMU, NEWER),
            guests=tuple(self._guest(told) for told in self.guests),
            lock_manager="",
            memory_backing_dir="/var/lib/libvirt/qemu/ram",
            ram_room=RamRoom("tmpfs", unpromised=64 << 30, available=(64 << 30) - self._asked),
        )
        kernel = Component("kernel", "6.1.0-48", "6.1.0-49", Freshness.OUTDATED)
        return seen, observe(seen, [kernel], Policies(), past.past(), at=wiring.now())

    def _guest(self, told: Told) -> Guest:
        argv = words_of(told.argv)
        read = self._readings.of(told.uuid, told.live_xml.decode(), argv, 1)
        return Guest(
            name=told.name,
            uuid=told.uuid,
            domain_id=1,
            state=GuestState.RUNNING,
            state_reason="",
            persistent=True,
            autostart=False,
            definition=read.definition,
            process=QemuProcess(100, 1, QEMU.emulator, exe_deleted=False, argv=argv),
            qemu=QEMU,
            ram_files=(),
            drift=read.drift,
            argv=read.argv,
            plugged_taps=read.plugged_taps,
        )


def _told(number: int) -> Told:
    kind, name, own = OF_ALL_KINDS[number % len(OF_ALL_KINDS)], f"web{number}", str(uuid.UUID(int=number + 1))
    xml = (SAMPLES / f"{kind}.xml").read_text()
    found = re.search(r"<uuid>(.*?)</uuid>", xml)
    assert found is not None
    words = [
        word.replace(found[1], own).replace(kind, name)
        for word in json.loads((SAMPLES / f"{kind}.argv.json").read_text())
    ]
    return Told(name, own, xml.replace(found[1], own).replace(kind, name).encode(), "\0".join([*words, ""]).encode())


class UpEvents:
    """A libvirt that answers, and has nothing to tell."""

    def start(self, tell: Callable[[Event], None]) -> None:
        tell(LineEvent(up=True))

    def stuck(self) -> str:
        return ""

    def end(self, _within_seconds: float) -> None: ...


def settings(folder: Path, look_seconds: float) -> Config:
    paths = {"state": str(folder / "state"), "held": str(folder / "held")}
    agent = {"socket": str(folder / "agent.sock"), "group": "", "look_seconds": look_seconds}
    return Config.model_validate({"paths": paths, "agent": agent})


def main() -> None:
    folder, count, look_seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    config, host = settings(folder, look_seconds), MadeUpHost.of(folder, count)
    past = JournalPast(JournalTail(wiring.journal_path(config)))

    async def run() -> None:
        agent = Agent(
            config,
            log_to_stdout(config.agent.log_format, Writer()),
            Notify(),
            UpEvents(),
            lambda: host.look(past),
            AsChild(),
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.stop.set)
        await agent.run()

    asyncio.run(run())


if __name__ == "__main__":
    main()

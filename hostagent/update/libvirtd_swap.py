"""libvirt's daemon as a component of the host: the one that runs gives way to the one that is installed.

No guest is paused: QEMU runs without it, and it comes back to every guest by its runtime record. So those are kept
beforehand, and every guest is looked at afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.facts import Component, Freshness
from hostagent.hypervisor import Daemon, Libvirt, ProcessId, Qemu
from hostagent.libvirt_files.runtime_record import RuntimeRecord
from hostagent.update import files
from hostagent.update.attachment import no_jobs


@dataclass(frozen=True)
class LibvirtdComponent:
    """libvirt's daemon, whichever of them has the QEMU driver."""

    libvirt: Libvirt
    daemon: Daemon
    qemu: Qemu
    records: Path  # where libvirt keeps them
    kept: Path  # where we do
    ready_seconds: float
    looks: Callable[[], Component]
    name: str = "libvirtd"
    holds: bool = False
    first_seconds: float = 3.0

    def look(self) -> Component:
        return self.looks()

    def stage(self) -> None:
        no_jobs(self.libvirt)
        self.forget()
        for path in sorted(self.records.glob("*.xml")):
            files.write_private(self.kept / path.name, files.read_private(path))
        list(self._of_living())  # one that is not understood could not be looked for afterwards

    def apply(self) -> None:
        self.libvirt.disconnect()
        self.daemon.stop(self.ready_seconds)
        self.daemon.start(self.ready_seconds)

    def is_applied(self) -> bool:
        """What is installed runs, and has every guest as it was."""
        if not self.daemon.is_up() or not self.libvirt.usable() or self.look().freshness is not Freshness.CURRENT:
            return False
        return not self._missing()

    def is_for_good(self) -> bool:
        return False

    def roll_back(self) -> None:
        """libvirt's daemon is up, with every guest; of which build it is, its package decides."""
        if self.daemon.is_up() and self.libvirt.usable() and not self._missing():
            return
        doing = "having libvirt's daemon back with every guest"
        try:
            self.libvirt.disconnect()
            self.daemon.stop(self.ready_seconds)
            for record in self._of_living():
                path = self.records / f"{record.name}.xml"
                if not path.exists():
                    files.replace(path, record.data)
            self.daemon.start(self.ready_seconds)
        except HostagentError as error:
            raise self._stuck(doing, str(error)) from error
        if missing := self._missing():
            raise self._stuck(doing, f"it does not know {', '.join(missing)}")

    def forget(self) -> None:
        files.discard(*(str(path) for path in self.kept.glob("*.xml")))
        with suppress(OSError):
            self.kept.rmdir()

    def _stuck(self, doing: str, found: str) -> NeedsOperator:
        return NeedsOperator(
            doing,
            expected="it to answer, and to know every guest that runs",
            found=found,
            hint=f"the guests run, and their records are in {self.kept}; put the package back that ran before, then: "
            f"{self.daemon.restart_hint()}; hostagent recover",
        )

    def _missing(self) -> list[str]:
        """Guests whose QEMU runs, and that libvirt does not have as they were."""
        return [record.name for record in self._of_living() if not self._has(record)]

    def _has(self, record: RuntimeRecord) -> bool:
        try:
            self.libvirt.settled(record.uuid)
            now = self.libvirt.standing(record.uuid)
        except Failed:
            return False
        return now is not None and now.process is not None and now.process.pid == record.pid

    def _of_living(self) -> Iterator[RuntimeRecord]:
        """The records of guests whose QEMU still runs."""
        for path in sorted(self.kept.glob("*.xml")):
            record = RuntimeRecord.parse(files.read_private(path))
            if self._runs(record):
                yield record

    def _runs(self, record: RuntimeRecord) -> bool:
        try:
            process: ProcessId = self.qemu.identify(record.pid)
        except Failed:
            return False
        return self.qemu.alive(process)

"""libvirt's daemon as a component of the host: the one that runs gives way to the one that is installed.

No guest is paused: QEMU runs without it, and it comes back to every guest by its runtime record. So those are kept
beforehand, and every guest is looked at afterwards. If another version is wanted its packages are installed first, with
the old ones at hand: they go back where the new daemon does not come up, or does not have every guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hostagent.components.libvirt_packages import LibvirtPackages
from hostagent.components.packages import Staged
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
    packages: LibvirtPackages
    reload_others: Callable[[], None]  # the daemons beside it that hold guests' logs and locks
    wanted: str = ""  # the version to go to, or its beginning; "" is what is installed
    name: str = "libvirtd"
    holds: bool = False

    @property
    def first_seconds(self) -> float:
        return 30.0 if self.wanted else 3.0

    def look(self) -> Component:
        now = self.looks()
        target = self.packages.target(self.wanted) if self.wanted else ""
        if not target or now.freshness is Freshness.UNKNOWN:
            return now
        return replace(now, installed=target, freshness=Freshness.OUTDATED)

    def stage(self) -> None:
        no_jobs(self.libvirt)
        self.forget()
        if self.wanted:
            self.packages.stage(self.wanted)
            no_jobs(self.libvirt)  # that took a while
        for path in sorted(self.records.glob("*.xml")):
            files.write_private(self.kept / path.name, files.read_private(path))
        list(self._of_living())  # one that is not understood could not be looked for afterwards

    def apply(self) -> None:
        if (staged := self.packages.staged()) is not None:
            self.packages.install(staged)
        self.libvirt.disconnect()
        self.daemon.stop(self.ready_seconds)
        self.daemon.start(self.ready_seconds)
        if not self._missing():
            self.reload_others()  # last: what they have of guests' logs is not risked for a daemon that does not stay

    def is_applied(self) -> bool:
        """What is installed runs, and has every guest as it was."""
        staged = self.packages.staged()
        return (staged is None or self.packages.are_new(staged)) and self._runs_what_is_installed()

    def _runs_what_is_installed(self) -> bool:
        return self._is_well() and self.looks().freshness is Freshness.CURRENT

    def _is_well(self) -> bool:
        return self.daemon.is_up() and self.libvirt.usable() and not self._missing()

    def is_for_good(self) -> bool:
        return False

    def roll_back(self) -> None:
        """libvirt's daemon is up, with every guest; of which build it is, its package decides: the old one, if kept."""
        staged = self.packages.staged()
        if self._is_back(staged):
            return
        doing = "having libvirt's daemon back with every guest"
        try:
            if staged is not None:
                self.packages.put_back(staged)
            self.libvirt.disconnect()
            self.daemon.stop(self.ready_seconds)
            for record in self._of_living():
                path = self.records / f"{record.name}.xml"
                # A newer daemon has written it anew, and an older one drops a guest whose record it does not
                # understand: 9.0 does with what 11.3 says of q35 guests (<watchdog model='itco'>).
                if staged is not None or not path.exists():
                    files.replace(path, record.data)
            self.daemon.start(self.ready_seconds)
            missing = self._missing()
        except HostagentError as error:
            raise self._stuck(doing, str(error), staged) from error
        if missing:
            raise self._stuck(doing, f"it does not know {', '.join(missing)}", staged)
        with suppress(HostagentError):  # of no use to a guest that runs, and why it went wrong before was said then
            self.reload_others()

    def _is_back(self, staged: Staged | None) -> bool:
        if staged is None:
            return self._is_well()
        try:
            return self.packages.are_old(staged) and self._runs_what_is_installed()
        except HostagentError:
            return False

    def forget(self) -> None:
        self.packages.forget()
        files.discard(*(str(path) for path in self.kept.glob("*.xml")))
        with suppress(OSError):
            self.kept.rmdir()

    def _stuck(self, doing: str, found: str, staged: Staged | None) -> NeedsOperator:
        back = self.packages.way_back(staged) if staged is not None else "put the package back that ran before"
        return NeedsOperator(
            doing,
            expected="it to answer, and to know every guest that runs",
            found=found,
            hint=f"the guests run, and their records are in {self.kept}; {back}, then: "
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

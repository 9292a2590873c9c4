"""Journals as updates write them, made up row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hostagent.facts import QemuTree, Version
from hostagent.plan import Method, Technique
from hostagent.update.journal import Entry, Kind, Outcome, Row, SqliteJournal, UpdateRecord, fold
from hostagent.update.order import OrderedGuest, OrderKind, UpdateOrder

OLD = QemuTree("system", Version(7, 2, 22), "1:7.2+dfsg-7+deb12u18", "/usr/bin/qemu-system-x86_64")
NEW = QemuTree("10.0.2+ds-2", Version(10, 0, 2), "1:10.0.2+ds-2", "/var/lib/hostagent/qemu/10/usr/bin/qemu")
BEGIN = 1_795_326_000.0
HANDOVER = ("prepare", "start", "reconcile", "switch", "record", "resume", "retire", "prove", "look")
MEASURED: Mapping[str, object] = {
    "moved_bytes": 640_000,
    "pause_seconds": 0.0182,
    "pause_source": "qemu",
    "clock_before_seconds": 0.0003,
    "clock_before_bound_seconds": 0.0004,
    "clock_outcome": "corrected",
    "clock_reason": None,
    "clock_after_seconds": -0.018,
    "clock_after_bound_seconds": 0.0005,
    "clock_synced_seconds": -0.0001,
    "clock_synced_bound_seconds": 0.0006,
    "xml_differences": [],
}


@dataclass
class Writer:
    """Writes rows, one every 10 ms."""

    rows: list[Row] = field(default_factory=list)
    now: float = BEGIN

    def append(self, update: str, *entries: Entry) -> None:
        self.now += 0.01
        for entry in entries:
            self.rows.append(Row(len(self.rows) + 1, self.now, "boot", update, entry))

    def begin(
        self,
        update: str,
        *names: str,
        kind: OrderKind = OrderKind.UPDATE,
        to: QemuTree = NEW,
        undoes: str = "",
        method: Method = Method.IN_PLACE,
        technique: Technique = Technique.HANDOVER,
        roll: str = "",
        swaps: tuple[str, ...] = (),
    ) -> None:
        """An update of guests of these names; their uuids are "uuid of NAME"."""
        guests = tuple(
            OrderedGuest(
                uuid=f"uuid of {name}",
                name=name,
                before=OLD,
                method=method,
                technique=technique if method.in_place else None,
                budget_seconds=10.0,
            )
            for name in names
        )
        order = UpdateOrder(kind=kind, to=to, guests=guests, pid=1, undoes=undoes, roll=roll, swaps=swaps)
        begun = [Entry(Kind.GUEST_BEGUN, guest.uuid, body={"name": guest.name}) for guest in guests]
        self.append(update, Entry(Kind.UPDATE_BEGUN, body=order.body()), *begun)

    def steps(self, update: str, name: str, *steps: str) -> None:
        for step in steps:
            self.append(update, Entry(Kind.STEP_BEGUN, f"uuid of {name}", step))

    def measured(self, update: str, name: str, **values: object) -> None:
        self.append(update, Entry(Kind.MEASURED, f"uuid of {name}", body=values))

    def end_guest(self, update: str, name: str, outcome: Outcome, reason: str = "", kind: str = "") -> None:
        body = {"outcome": outcome, "reason": reason, "kind": kind}
        self.append(update, Entry(Kind.GUEST_ENDED, f"uuid of {name}", body=body))

    def end(self, update: str, outcome: Outcome, reason: str = "") -> None:
        self.append(update, Entry(Kind.UPDATE_ENDED, body={"outcome": outcome, "reason": reason}))

    def updated(self, update: str, *names: str, kind: OrderKind = OrderKind.UPDATE, **measured: object) -> None:
        """A whole update that went well."""
        self.begin(update, *names, kind=kind)
        for name in names:
            self.steps(update, name, *HANDOVER)
            self.measured(update, name, **{**MEASURED, **measured})
            self.end_guest(update, name, Outcome.UPDATED)
        self.end(update, Outcome.UPDATED)

    def records(self) -> tuple[UpdateRecord, ...]:
        return fold(self.rows)

    def save(self, path: Path) -> None:
        """As a journal on the disk."""
        moments = iter([row.at for row in self.rows])
        journal = SqliteJournal(path, "boot", lambda: next(moments))
        for row in self.rows:
            journal.append(row.update, row.entry)
        journal.close()

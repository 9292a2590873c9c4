"""What an update was asked to do, as it stands in the journal: enough for any later process to finish or undo it."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from hostagent.errors import NeedsOperator
from hostagent.facts import QemuTree
from hostagent.plan import ClockPolicy, Method, Technique
from hostagent.update.journal import Json, UpdateRecord


class OrderKind(StrEnum):
    """Whether real guests are meant, or throw-away ones, and what for."""

    UPDATE = "update"
    ADOPTION = "adoption"  # onto the same QEMU, with RAM in a file
    REHEARSAL = "rehearsal"


class OrderedGuest(BaseModel):
    """A guest of the order."""

    model_config = ConfigDict(frozen=True)

    uuid: str
    name: str
    before: QemuTree | None
    method: Method = Method.IN_PLACE
    technique: Technique | None = Technique.HANDOVER  # None: it is not updated in place
    peer: str = ""  # where it migrates to
    boot_tcp: str = ""  # what answers once it has booted
    comes_back: bool = False  # from there
    copies_storage: bool = False  # disks that are not there are copied
    budget_seconds: float  # for which it may stand still
    clock: ClockPolicy = ClockPolicy.STEP


class UpdateOrder(BaseModel):
    """The body of the journal's first row of an update."""

    model_config = ConfigDict(frozen=True)

    kind: OrderKind
    component: str = "qemu"
    to: QemuTree | None = None  # None: guests stay on the QEMU that they are on
    swaps: tuple[str, ...] = ()  # components that are swapped while all guests are held
    guests: tuple[OrderedGuest, ...]
    pid: int
    adopt_definition: bool = True  # of guests whose RAM is copied into a file
    undoes: str = ""  # the update that this one brings guests back from
    roll: str = ""  # an id that it shares with the other updates of a roll
    group: int = 0  # its place in that, from 1
    groups: int = 0
    rehearsed: tuple[str, ...] = ()  # of a rehearsal: what it proves, see rehearsal.py
    workdir: str = ""  # of a rehearsal: its guests' files

    def body(self) -> Json:
        """As the journal keeps it."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls, update: UpdateRecord) -> Self:
        """Read back; NeedsOperator when another version wrote it."""
        try:
            return cls.model_validate(dict(update.order))
        except ValidationError as error:
            raise NeedsOperator(
                f"reading update {update.id} in the journal",
                expected="an order of this version of hostagent",
                found=str(error.errors()[0]["msg"]),
                hint="use the hostagent that wrote it",
            ) from error

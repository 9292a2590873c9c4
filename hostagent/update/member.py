"""A guest in a batch: how far it got, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.update.journal import Entry, GuestRecord, Journal, Kind, Outcome, Progress
from hostagent.update.subject import AnyGuest, Ports

S = TypeVar("S", bound=AnyGuest)

CUT_OFF = Failed("the update", found="it was cut off, and undone by recovery")


@dataclass
class MemberOf(Generic[S]):
    """A guest in a batch of one technique."""

    swap: S
    progress: Progress = field(default_factory=Progress)
    outcome: Outcome | None = None
    reason: str = ""
    reason_kind: str = ""
    failure: tuple[str, str] = ("", "")  # why it was being undone before a crash, and the kind of that
    closed: bool = False  # its end is in the journal already

    @property
    def active(self) -> bool:
        """Whether it still takes part."""
        return self.outcome is None

    def end(self, outcome: Outcome, error: HostagentError | str = "") -> None:
        """Leave the batch."""
        self.outcome = outcome
        self.reason = str(error)
        self.reason_kind = error.kind if isinstance(error, HostagentError) else ""

    def take_up(self, record: GuestRecord) -> None:
        """Be as the journal left it; one that waited for a person is tried again."""
        self.swap.saved = self.swap.read_notes(record.notes)
        self.progress = record.progress
        if record.outcome is None or record.outcome is Outcome.NEEDS_OPERATOR:
            self.failure = (record.failure, record.failure_kind)
        else:
            self.outcome, self.reason, self.reason_kind = record.outcome, record.reason, record.reason_kind
            self.closed = True

    def blame_what_failed_first(self) -> None:
        """It is back where it was: what it was undone for is the reason, not that a crash came between."""
        if self.outcome is Outcome.ROLLED_BACK and self.failure[0]:
            self.reason, self.reason_kind = self.failure


def write_ends(journal: Journal, update: str, members: Iterable[MemberOf[Any]]) -> None:
    """How each ended that has, unless the journal knows."""
    for member in members:
        if member.outcome is not None and not member.closed:
            body = {"outcome": member.outcome, "reason": member.reason, "kind": member.reason_kind}
            write_end(journal, update, Entry(Kind.GUEST_ENDED, member.swap.uuid, body=body))


def write_end(journal: Journal, update: str, entry: Entry) -> None:
    """The last word on a guest or an update; raises NeedsOperator when it cannot be written."""
    try:
        journal.append(update, entry)
    except HostagentError as error:
        raise NeedsOperator(
            "writing down how the update ended, which the journal does not say now",
            found=str(error),
            hint="make room on the journal's disk, then: hostagent recover",
        ) from error


def says_yes(question: Callable[[], bool]) -> bool:
    """What cannot be asked counts as no."""
    try:
        return question()
    except HostagentError:
        return False


def have_libvirt(ports: Ports, for_whom: str) -> None:
    """Have its daemon up, without which nothing can be done for them; raises NeedsOperator with the command."""
    daemon, seconds = ports.daemon, ports.config.libvirt.daemon.ready_seconds
    if daemon.is_up():
        return
    try:
        daemon.start(seconds)
    except HostagentError as error:
        raise NeedsOperator(
            f"starting libvirt's daemon, for {for_whom}",
            expected="it to answer",
            found=str(error),
            hint=f"{daemon.restart_hint()}; then: hostagent recover",
        ) from error

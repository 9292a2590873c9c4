"""The only engine: runs step tables forward, or back.

A step says what it does, how to see in the world that it is done, and how to undo it. The engine writes "begun" before
and "done" after each (`done` of one step and `begun` of the next are one commit: inside a pause every commit counts).
A step that commits is the point of no return: its "begun" is the durable intent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown
from hostagent.update.journal import Entry, Journal, Kind, Progress, progressed

C = TypeVar("C", bound="Subject")


class Subject(Protocol):
    """What steps act on: one guest, or the host for the whole batch."""

    @property
    def key(self) -> str:
        """The journal's key: a guest's uuid, "" for the host."""
        ...

    @property
    def update(self) -> str: ...


@dataclass(frozen=True)
class Step(Generic[C]):
    """A row of a step table."""

    name: str
    do: Callable[[C], None]
    is_done: Callable[[C], bool]
    undo: Callable[[C], None] | None = None
    commits: bool = False


class Teller(Protocol):
    """Hears of each step as it begins, for a person watching."""

    def __call__(self, key: str, step: str, doing: str) -> None: ...


@dataclass
class Engine:
    """Runs tables over subjects, with everything written down first."""

    journal: Journal
    tell: Teller
    cancelled: Callable[[], bool]

    def forward(self, table: Sequence[Step[C]], subject: C, progress: Progress, *, stoppable: bool = False) -> Progress:
        """Run what is not done yet; returns the progress reached.

        Raises StepFailed, after writing it down, which says how far it got. A stoppable table heeds `cancelled`
        between its steps, up to the commit.
        """
        finished: tuple[Entry, ...] = ()
        for step in table:
            if step.name in progress.done:
                continue
            if stoppable and self.cancelled() and not committed(table, progress):
                self._flush(subject, finished)
                raise StepFailed(step.name, progress, Failed("cancelled", found="a signal asked to stop"))
            begun = Entry(Kind.STEP_BEGUN, subject.key, step.name)
            again = step.name in progress.open
            try:
                self.journal.append(subject.update, *finished, begun)
            except HostagentError as error:
                if not again and (step.undo is not None or step.commits):
                    raise StepFailed(step.name, progress, error) from error
                # It is in the journal already, or decides nothing and is never undone: a full disk must not keep a
                # guest, the old QEMU or libvirt's daemon where they are. A later process asks the world.
                self.tell(subject.key, "journal", str(error))
            finished = ()
            progress = progressed(progress, begun)
            self.tell(subject.key, step.name, "begun")
            try:
                with _ours(f"step {step.name}"):
                    self._do(step, subject, again=again)
            except HostagentError as error:
                why = {"error": str(error), "kind": error.kind}
                self._flush(subject, (Entry(Kind.STEP_FAILED, subject.key, step.name, why),))
                raise StepFailed(step.name, progress, error) from error
            finished = (Entry(Kind.STEP_DONE, subject.key, step.name),)
            progress = progressed(progress, finished[0])
        if finished:
            self._flush(subject, finished)
        return progress

    def _do(self, step: Step[C], subject: C, *, again: bool) -> None:
        if again and step.is_done(subject):
            return  # a crash came between the doing and its "done"
        try:
            step.do(subject)
        except OutcomeUnknown as unknown:  # no answer is not a no: the world says whether it happened
            if step.is_done(subject):
                return
            raise _told(unknown) from unknown
        if not step.is_done(subject):
            raise Failed(f"step {step.name}", expected="its effect to show afterwards", found="none")

    def back(self, table: Sequence[Step[C]], subject: C, progress: Progress) -> None:
        """Undo everything that may have begun, newest first.

        Stops at the first undo that fails and raises NeedsOperator: what lies before it in the table (the pinned RAM)
        is then still needed. The journal cannot hold an undo up: a guest is resumed even when its disk is full, and
        after one failure nobody waits for it again.
        """
        steps = {step.name: step for step in table}
        writable = True
        for name in reversed(progress.open):
            step = steps.get(name)
            if step is None or step.undo is None:
                continue
            self.tell(subject.key, name, "undone")
            writable = writable and self._flush(subject, (Entry(Kind.UNDO_BEGUN, subject.key, name),))
            try:
                with _ours(f"undoing step {name}"):
                    step.undo(subject)
            except HostagentError as error:
                raise NeedsOperator(
                    f"undoing step {name}", found=str(error), hint=error.hint or "hostagent recover"
                ) from error
            writable = writable and self._flush(subject, (Entry(Kind.UNDO_DONE, subject.key, name),))

    def _flush(self, subject: Subject, entries: tuple[Entry, ...]) -> bool:
        """Write what nothing depends on, if possible: undoing is idempotent, and what is done shows in the world."""
        try:
            self.journal.append(subject.update, *entries)
        except HostagentError as error:
            self.tell(subject.key, "journal", str(error))
            return False
        return True


@contextmanager
def _ours(doing: str) -> Iterator[None]:
    """What the system itself refuses, or never answers, fails like anything else: undoing must go on."""
    try:
        yield
    except OSError as error:
        raise Failed(doing, found=str(error)) from error
    except OutcomeUnknown as unknown:
        raise _told(unknown) from unknown


def _told(unknown: OutcomeUnknown) -> Failed:
    return Failed(unknown.doing, expected=unknown.expected, found=unknown.found, hint=unknown.hint)


class StepFailed(Exception):
    """A step did not get done; carries how far the subject got."""

    def __init__(self, step: str, progress: Progress, error: HostagentError) -> None:
        super().__init__(str(error))
        self.step = step
        self.progress = progress
        self.error = error


def committed(table: Sequence[Step[C]], progress: Progress) -> bool:
    """Whether the point of no return is behind: the committing step's "begun" is in the journal."""
    return any(step.commits and step.name in progress.begun for step in table)

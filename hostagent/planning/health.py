"""Whether guests are as well after an update as they were before it: what is asked, and what is said of it; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from hostagent.config import HealthSettings
from hostagent.facts import GuestState
from hostagent.planning.update_domains import Placed

# As clock.py, which is not pure, reports clocks. No update is to blame for those that nobody was to set, or could have
# set before.
_UNCORRECTED = "uncorrected"
_EXCUSED = frozenset(("policy", "host-unsynced", "ahead", "command-disabled", "paused"))


class Sign(StrEnum):
    """What was looked at: bounded."""

    STATE = "state"
    AGENT = "agent"
    CLOCK = "clock"
    TCP = "tcp"
    COMMAND = "command"


@dataclass(frozen=True)
class Complaint:
    """Something that is not well."""

    who: str  # a guest's name; of a check what it is of
    sign: Sign
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.who}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Health:
    """What a look at guests has found."""

    complaints: tuple[Complaint, ...] = ()

    @property
    def good(self) -> bool:
        """Whether all is well."""
        return not self.complaints

    def __str__(self) -> str:
        return "; ".join(map(str, self.complaints)) or "all well"


@dataclass(frozen=True)
class Before:
    """A guest before its update."""

    name: str
    uuid: str
    state: GuestState
    answered: bool  # its agent


@dataclass(frozen=True)
class Now:
    """A guest after it. None is what is not known, or was not asked."""

    state: GuestState | None  # None: this libvirt does not know it
    state_reason: str
    silent: str | None  # why its agent does not answer; None: it does
    clock_was_read: bool = False  # before its update
    clock_outcome: str | None = None
    clock_reason: str | None = None
    left: bool = False  # it went to another host, and stays there


@dataclass(frozen=True)
class Check:
    """Something to be asked of the outside."""

    of: str  # whose it is, in words
    within_seconds: float
    address: tuple[str, int] | None  # host and port that have to answer
    command: tuple[str, ...]  # that has to end with exit status 0, where there is no address

    @property
    def sign(self) -> Sign:
        """What it looks at."""
        return Sign.COMMAND if self.address is None else Sign.TCP

    @property
    def expected(self) -> str:
        """What it has to find."""
        within = f"within {self.within_seconds:g} s"
        if self.address is None:
            return f"{self.command[0]} to end with exit status 0 {within}"
        return f"{self.address[0]} port {self.address[1]} to take a connection {within}"


def checks_of(settings: Sequence[HealthSettings], guests: Sequence[Placed]) -> tuple[Check, ...]:
    """The checks that concern any of these guests, each once."""
    return tuple(
        Check(one.of, one.within_seconds, one.address, one.command or ())
        for one in settings
        if any(_concerns(one, guest) for guest in guests)
    )


def _concerns(one: HealthSettings, guest: Placed) -> bool:
    if one.availability_set is not None:
        return guest.availability_set == one.availability_set
    return one.guest is not None and (guest.name == one.guest or fnmatchcase(guest.name, one.guest))


def complaints_of(before: Before, now: Now) -> Iterator[Complaint]:
    """What of the guest is not as it was. Its owner may have resumed one that was paused."""
    if now.left:
        return
    well = {GuestState.RUNNING, before.state}
    if now.state not in well:
        found = "no such guest" if now.state is None else _in_words(now.state, now.state_reason)
        yield Complaint(before.name, Sign.STATE, f"it {before.state} as before", found)
        return
    if before.answered and now.silent is not None and now.state is GuestState.RUNNING:
        yield Complaint(before.name, Sign.AGENT, "its guest agent to answer, as before", now.silent)
    if now.clock_was_read and now.clock_outcome == _UNCORRECTED and now.clock_reason not in _EXCUSED:
        reason = now.clock_reason or "no reason given"
        yield Complaint(before.name, Sign.CLOCK, "its clock to be right", f"it left as it is ({reason})")


def _in_words(state: GuestState, reason: str) -> str:
    return f"it {state} ({reason})" if reason else f"it {state}"

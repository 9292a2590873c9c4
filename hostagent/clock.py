"""Guest clocks: measure, set, verify by reading again.

A guest's clock stops with it and lags by exactly the pause; neither QEMU nor libvirt corrects it. Times are
nanoseconds inside, seconds in results. What a guest agent answers is hostile input. The commands are
guest-get-time and guest-set-time of QEMU's qga/qapi-schema.json: nanoseconds since 1970, UTC.
"""

import ctypes
import os
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hostagent.plan import ClockPolicy

ENOUGH_SECONDS = 0.005  # behind by less than this (or than twice the bound) is in sync
REPEAT_SECONDS = 0.010  # after setting, behind by more than this is set again
ATTEMPTS = 8  # one is enough on a quiet host; under load the agent may be late to act on what it is told
_LATEST_NS = 2**63 - 1  # a guest agent's time is an int64
_NS = 1_000_000_000


class AgentFault(StrEnum):
    """Why a guest agent gave no usable answer; bounded, for metrics."""

    NO_AGENT = "no-agent"
    TIMEOUT = "agent-timeout"
    COMMAND_DISABLED = "command-disabled"
    COMMAND_FAILED = "command-failed"
    BAD_REPLY = "bad-reply"


class AgentError(Exception):
    """A guest agent gave no usable answer; `kind` says why, `detail` is for people."""

    def __init__(self, kind: AgentFault, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else str(kind))
        self.kind = kind
        self.detail = detail


class GuestAgent(Protocol):
    """One guest's agent, whoever carries the words."""

    def ask(self, command: str, arguments: dict[str, object] | None, within_seconds: float) -> object:
        """The answer's ``return``, unchecked but bounded in size; AgentError when there is none in time."""


class HostClock(Protocol):
    """The reference the guests are set by."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, UTC."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never jump."""

    def synchronised(self) -> bool:
        """Whether wall_ns() may be pushed into guests."""


class Outcome(StrEnum):
    """How a guest's clock was left."""

    IN_SYNC = "in-sync"
    CORRECTED = "corrected"
    UNCORRECTED = "uncorrected"


class Reason(StrEnum):
    """Why a clock was left uncorrected; bounded, for metrics."""

    NO_AGENT = "no-agent"
    AGENT_TIMEOUT = "agent-timeout"
    COMMAND_DISABLED = "command-disabled"
    COMMAND_FAILED = "command-failed"
    BAD_REPLY = "bad-reply"
    HOST_UNSYNCED = "host-unsynced"
    AHEAD = "ahead"
    STILL_BEHIND = "still-behind"  # set, no error, and yet read as wrong
    POLICY = "policy"  # the settings say not to set, or not even to look


@dataclass(frozen=True)
class Offset:
    """Guest minus host; the true value is at most `bound_seconds` away."""

    seconds: float
    bound_seconds: float


@dataclass(frozen=True)
class ClockResult:
    """A guest's clock before and after setting; None where it could not be read."""

    before_set: Offset | None
    after_set: Offset | None
    outcome: Outcome
    reason: Reason | None


@dataclass(frozen=True)
class _Sample:
    """One reading of the guest's clock, taken to be of the middle of its round trip."""

    guest_ns: int
    wall_ns: int
    monotonic_ns: int
    round_trip_ns: int

    @property
    def offset(self) -> Offset:
        return Offset((self.guest_ns - self.wall_ns) / _NS, self.round_trip_ns / 2 / _NS)


def measure(
    agent: GuestAgent,
    clock: HostClock,
    samples: int,
    *,
    agent_seconds: float = 2.0,
    within_seconds: float = 10.0,
) -> Offset:
    """The guest's offset, from the sample with the smallest round trip; AgentError when there is none."""
    deadline = clock.monotonic_ns() + int(within_seconds * _NS)
    return _Talk(agent, clock, samples, agent_seconds, deadline).best().offset


def bring_right(
    agent: GuestAgent,
    clock: HostClock,
    policy: ClockPolicy,
    *,
    samples: int = 8,
    agent_seconds: float = 2.0,
    within_seconds: float = 10.0,
) -> ClockResult:
    """Measure, set forward if behind, measure again; never steps a guest back, never raises AgentError."""
    if policy is ClockPolicy.OFF:
        return ClockResult(None, None, Outcome.UNCORRECTED, Reason.POLICY)
    deadline = clock.monotonic_ns() + int(within_seconds * _NS)
    talk = _Talk(agent, clock, samples, agent_seconds, deadline)
    try:
        before = talk.best()
    except AgentError as error:
        return ClockResult(None, None, Outcome.UNCORRECTED, Reason(error.kind))
    to_set, reason = _judge(before.offset, policy, host_is_right=clock.synchronised())
    if to_set:
        return _set_and_verify(talk, before)
    return ClockResult(before.offset, None, Outcome.UNCORRECTED if reason else Outcome.IN_SYNC, reason)


def _judge(offset: Offset, policy: ClockPolicy, *, host_is_right: bool) -> tuple[bool, Reason | None]:
    """Whether to set the guest, and if not, what is wrong with leaving it."""
    enough = max(ENOUGH_SECONDS, 2 * offset.bound_seconds)
    if not host_is_right:
        return False, Reason.HOST_UNSYNCED  # a guest that agrees with such a host may be wrong with it
    if offset.seconds > enough:
        return False, Reason.AHEAD
    if offset.seconds >= -enough:
        return False, None
    return (True, None) if policy is ClockPolicy.STEP else (False, Reason.POLICY)


def _set_and_verify(talk: "_Talk", before: _Sample) -> ClockResult:
    """Set until it is right. What the setting answers is not believed, but explains a clock that stayed wrong:
    without hwclock in the guest, older agents report failure although the clock was set."""
    last, after = before, None
    why = Reason.STILL_BEHIND
    for _ in range(ATTEMPTS):
        fault = talk.set_forward(last)
        if fault is Reason.AHEAD:  # the host's own clock went back meanwhile
            return ClockResult(before.offset, after, Outcome.UNCORRECTED, fault)
        why = fault or Reason.STILL_BEHIND
        try:
            last = talk.best()
        except AgentError as error:
            return ClockResult(before.offset, after, Outcome.UNCORRECTED, Reason(error.kind))
        after = last.offset
        tolerated = max(REPEAT_SECONDS, 2 * after.bound_seconds)
        if after.seconds > tolerated:
            return ClockResult(before.offset, after, Outcome.UNCORRECTED, Reason.AHEAD)
        if after.seconds >= -tolerated:
            return ClockResult(before.offset, after, Outcome.CORRECTED, None)
    return ClockResult(before.offset, after, Outcome.UNCORRECTED, why)


@dataclass(frozen=True)
class _Talk:
    """A conversation with one agent under one deadline."""

    agent: GuestAgent
    clock: HostClock
    samples: int
    agent_seconds: float
    deadline_ns: int

    def best(self) -> _Sample:
        """Of `samples` readings the one with the smallest round trip; a cold one before only wakes the agent.

        One timeout is forgiven while the agent wakes up; later a timeout ends the sampling and what was read
        counts. Every other fault is final.
        """
        try:
            self._read()
        except AgentError as error:
            if error.kind is not AgentFault.TIMEOUT:
                raise
            self._read()
        taken: list[_Sample] = []
        while len(taken) < self.samples:
            try:
                taken.append(self._read())
            except AgentError as error:
                if error.kind is AgentFault.TIMEOUT and taken:
                    break
                raise
        return min(taken, key=lambda sample: sample.round_trip_ns)

    def set_forward(self, seen: _Sample) -> Reason | None:
        """Set the guest to the host's time plus half the round trip; what went wrong, or None."""
        asked = self.clock.monotonic_ns()
        target = self.clock.wall_ns() + seen.round_trip_ns // 2
        guest_now = seen.guest_ns + (asked - seen.monotonic_ns)
        if target <= guest_now:
            return Reason.AHEAD
        try:
            self._ask("guest-set-time", {"time": target})
        except AgentError as error:
            return Reason(error.kind)
        return None

    def _read(self) -> _Sample:
        begin = self.clock.monotonic_ns()
        wall = self.clock.wall_ns()
        reply = self._ask("guest-get-time", None)
        round_trip = self.clock.monotonic_ns() - begin
        if type(reply) is not int or not 0 <= reply <= _LATEST_NS:  # a bool is an int, but no time
            raise AgentError(AgentFault.BAD_REPLY, f"guest-get-time: expected nanoseconds, found {reply!r:.80}")
        return _Sample(reply, wall + round_trip // 2, begin + round_trip // 2, round_trip)

    def _ask(self, command: str, arguments: dict[str, object] | None) -> object:
        left = (self.deadline_ns - self.clock.monotonic_ns()) / _NS
        if left <= 0:
            raise AgentError(AgentFault.TIMEOUT, f"no time left for {command}")
        return self.agent.ask(command, arguments, min(self.agent_seconds, left))


class SystemClock:
    """This host's clock; the kernel knows whether something keeps it right (adjtimex(2), STA_UNSYNC)."""

    def __init__(self, *, require_synchronised: bool = True) -> None:
        self._require_synchronised = require_synchronised

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def synchronised(self) -> bool:
        """The kernel's word, or True where the settings declare this clock the reference anyway."""
        return not self._require_synchronised or _kernel_says_synchronised()


class _Timex(ctypes.Structure):
    """The beginning of struct timex (linux/timex.h); with modes = 0 adjtimex only reads."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),  # more than the kernel writes on any architecture
    )


_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


def _kernel_says_synchronised() -> bool:
    timex = _Timex()
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.byref(timex))
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC

"""The guests' clocks around an update: measured before, measured and set after, side by side, outside the pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from hostagent.clock import AgentError, HostClock, Offset, measure
from hostagent.clock import bring_right as bring_clock_right
from hostagent.errors import HostagentError
from hostagent.plan import ClockPolicy
from hostagent.update.subject import AnyGuest

SYNCHRONISED_SECONDS = 90  # chrony, or systemd-timesyncd, has looked at its servers by then
POLL_SECONDS = 0.2
SIDE_BY_SIDE = 16  # each mostly waits for its guest
_ANSWERS = 5  # for so many times as long as one answer may take a guest's agent is talked to


def measure_before(swaps: Sequence[AnyGuest]) -> None:
    """Pauses add up over updates: what was wrong before is not blamed on this one."""
    _for_all(swaps, _measure_before)


def bring_right(swaps: Sequence[AnyGuest], *, just_booted: bool = False) -> None:
    """Set what is behind, verify, write the outcome down.

    just_booted: the host's own clock may not be right yet, which is waited for; the guests run meanwhile.
    """
    if just_booted and any(swap.clock is ClockPolicy.STEP for swap in swaps):
        _wait_for(swaps[0].ports.clock)
    _for_all(swaps, _bring_right)


def _wait_for(clock: HostClock) -> None:
    ends = clock.monotonic_ns() + SYNCHRONISED_SECONDS * 1_000_000_000
    while not clock.synchronised() and clock.monotonic_ns() < ends:
        time.sleep(POLL_SECONDS)


def _measure_before(swap: AnyGuest) -> dict[str, object]:
    settings = swap.ports.config.clock
    if swap.clock is ClockPolicy.OFF:
        return {}
    try:
        with swap.agent() as agent:
            offset = measure(
                agent,
                swap.ports.clock,
                settings.samples,
                agent_seconds=settings.agent_seconds,
                within_seconds=_ANSWERS * settings.agent_seconds,
            )
    except (AgentError, HostagentError) as error:
        return {"clock_before_reason": str(error)}
    return _offset("clock_before", offset)


def _bring_right(swap: AnyGuest) -> dict[str, object]:
    if not swap.notes.was_running:
        return {"clock_outcome": "uncorrected", "clock_reason": "paused"}
    settings = swap.ports.config.clock
    try:
        with swap.agent() as agent:
            result = bring_clock_right(
                agent,
                swap.ports.clock,
                swap.clock,
                samples=settings.samples,
                agent_seconds=settings.agent_seconds,
                within_seconds=_ANSWERS * settings.agent_seconds,
            )
    except HostagentError as error:
        return {"clock_outcome": "uncorrected", "clock_reason": str(error)}
    return {
        "clock_outcome": result.outcome,
        "clock_reason": result.reason,
        **_offset("clock_after", result.before_set),
        **_offset("clock_synced", result.after_set or result.before_set),
    }


def _offset(name: str, offset: Offset | None) -> dict[str, object]:
    return {} if offset is None else {f"{name}_seconds": offset.seconds, f"{name}_bound_seconds": offset.bound_seconds}


def _for_all(swaps: Sequence[AnyGuest], ask: Callable[[AnyGuest], dict[str, object]]) -> None:
    if not swaps:
        return
    workers = min(SIDE_BY_SIDE, len(swaps))
    if workers == 1:
        results = [ask(swap) for swap in swaps]
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="clock") as pool:
            results = list(pool.map(ask, swaps))
    for swap, values in zip(swaps, results, strict=True):
        if values:
            swap.measured(values)

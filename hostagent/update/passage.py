"""A guest on its way between two hosts: watched, told of, broken off when it takes too long.

libvirt carries it out by itself. What is known of it here is for a person who watches, and for the pause: that ends
with the answer to `resume`, and had not begun when the guest was last seen running.
"""

from __future__ import annotations

from contextlib import suppress

from hostagent.errors import Failed, HostagentError
from hostagent.facts import GuestState
from hostagent.hypervisor.migration_verbs import MigratingHost, MigrationLook, MigrationOrder, Passage
from hostagent.hypervisor.peers import HOME
from hostagent.update.guest_migration import GuestMigration, Leg, Stand

LOOK_SECONDS = 0.2  # between two looks at one that has a way to go
CLOSE_SECONDS = 0.02  # and at one that may stand still any moment
CLOSE_BYTES = 64 << 20
GIB = 1 << 30


def cross(swap: GuestMigration, leg: Leg, order: MigrationOrder, *, stoppable: bool) -> None:
    """Have it migrate; returns when it has arrived, and raises Failed when it has not, for whatever reason."""
    source, doing = swap.host(leg.source), f"{swap.name}: migrating to {swap.called(leg.target)}"
    said: HostagentError | None = None
    with source.migrate(swap.uuid, order) as passage:
        broken_off = _Watch(swap, leg, stoppable=stoppable).see_it_through(passage)
        try:
            passage.result()
        except HostagentError as error:
            said = error
    if said is None and broken_off is None:
        return
    # Whatever was answered, or not: what is so is what both hosts say. One that was silent is asked once before more is
    # wanted of it.
    found = swap.stand(leg) if leg.source in swap.silent else Stand.UNDER_WAY
    if found is Stand.UNDER_WAY:
        with suppress(HostagentError):
            swap.break_off(leg.source)
        found = swap.stand(leg)
    if found in (Stand.ARRIVED, Stand.GOES_ON):
        return
    if broken_off is not None:
        raise broken_off
    assert said is not None  # noqa: S101 - else it had arrived
    raise Failed(doing, expected="it to arrive", found=said.found or str(said), hint=said.hint)


class _Watch:
    """Whoever waits for it."""

    def __init__(self, swap: GuestMigration, leg: Leg, *, stoppable: bool) -> None:
        self._swap, self._leg, self._stoppable = swap, leg, stoppable
        self._source: MigratingHost = swap.host(leg.source)
        self._began = swap.ports.monotonic()
        self._ends = self._began + limit_seconds(swap)
        self._last: MigrationLook | None = None
        self._told = {True: 0, False: 0}  # of its memory, and of disks before it
        self._limited = False
        self._guarded = False
        self._seen: float | None = None  # when it was last seen running
        self._heard = self._began  # when the host that it leaves last answered

    def see_it_through(self, passage: Passage) -> Failed | None:
        """Until it has ended; why it was to be broken off, if it was."""
        self._tell_begun()
        why: Failed | None = None
        while not passage.wait(self._pace()):
            if why is not None:
                if self._swap.ports.monotonic() > self._ends:
                    return why
                continue
            self._look()
            why = self._enough()
            if why is not None:
                if self._leg.source not in self._swap.silent:
                    with suppress(HostagentError):
                        self._swap.break_off(self._leg.source)
                self._ends = self._swap.ports.monotonic() + LOOK_SECONDS
        return why

    def _pace(self) -> float:
        last = self._last
        close = last is not None and last.total and last.left < max(CLOSE_BYTES, last.speed)
        return CLOSE_SECONDS if close else LOOK_SECONDS

    def _look(self) -> None:
        """What cannot be seen now is seen later, or not: the migration goes on."""
        swap, before = self._swap, self._swap.ports.monotonic()
        with suppress(HostagentError):
            if self._source.state(swap.uuid) is GuestState.RUNNING:
                # libvirt hears a moment later that it stands still: it surely ran when it was looked at before.
                swap.running_seen, self._seen = before if self._seen is None else self._seen, before
            elif not self._guarded and swap.running_seen is not None:
                self._guarded = True
                swap.ports.watcher.pausing(before + swap.budget_seconds + swap.ports.config.migrate.end_seconds)
            found = self._source.migration(swap.uuid)
            self._heard = swap.ports.monotonic()
            swap.silent.discard(self._leg.source)
            self._last = found or self._last
            if found is not None and found.total and not self._limited:
                self._source.limit_downtime(
                    swap.uuid, min(swap.budget_seconds, swap.ports.config.migrate.downtime_seconds)
                )
                self._limited = True
        self._tell()

    def _tell_begun(self) -> None:
        """How much is to cross: a small one may have arrived before it is looked at again."""
        disks = sum(disk.size for disk in self._swap.notes.copies)
        self._say(0, disks or self._swap.notes.memory, memory=not disks)

    def _tell(self) -> None:
        last = self._last
        if last is None or not (last.total or last.disks_total):
            return
        memory = bool(last.total)
        left, total = (last.left, last.total) if memory else (last.disks_left, last.disks_total)
        tenths = (total - left) * 10 // total
        if tenths > self._told[memory]:
            self._told[memory] = tenths
            self._say(total - left, total, memory=memory)

    def _say(self, done: int, total: int, *, memory: bool) -> None:
        across, what = f"{done / GIB:.1f} of {total / GIB:.1f} GiB", "" if memory else " of its disks"
        self._swap.tell(f"{across}{what} to {self._swap.called(self._leg.target)}")

    def _enough(self) -> Failed | None:
        swap = self._swap
        doing = f"{swap.name}: migrating to {swap.called(self._leg.target)}"
        if self._stoppable and swap.cancelled():
            return Failed(doing, found="a signal asked to stop")
        now, patience = swap.ports.monotonic(), swap.ports.config.migrate.end_seconds
        if now - self._heard > patience:
            if self._leg.source != HOME:  # which is here, and will answer
                swap.silent.add(self._leg.source)
            source = swap.called(self._leg.source)
            return Failed(doing, expected=f"{source} to answer", found=f"nothing from it for {patience:.0f} s")
        if now <= self._ends:
            return None
        last = self._last
        found = "nothing of its memory across"
        if last is not None and last.disks_total and not last.total:
            found = f"{last.disks_left / GIB:.2f} of {last.disks_total / GIB:.2f} GiB of its disks left"
        elif last is not None:
            found = (
                f"{last.left / GIB:.2f} of {last.total / GIB:.2f} GiB left: {last.speed / 2**20:.0f} MiB/s cross, "
                f"and the guest writes {last.dirtying / 2**20:.0f} MiB/s"
            )
        return Failed(
            doing,
            expected=f"it to arrive within {limit_seconds(swap):.0f} s",
            found=found,
            hint="a faster link, or more with seconds_per_gib in [migrate]",
        )


def limit_seconds(swap: GuestMigration) -> float:
    """What it is given to migrate within."""
    settings = swap.ports.config.migrate
    size = swap.notes.memory + sum(disk.size for disk in swap.notes.copies)
    return max(settings.least_seconds, size / GIB * settings.seconds_per_gib)


def go_on(swap: GuestMigration, target: str) -> None:
    """Have it run where it has arrived; OutcomeUnknown when that was not heard."""
    host, seconds = swap.host(target), swap.ports.config.migrate.end_seconds
    try:
        host.resume(swap.uuid)
    except HostagentError:  # the answer was lost, or there was none: perhaps there is one in a while
        if not host.usable(seconds):
            raise
        host.resume(swap.uuid)
    seen, swap.running_seen = swap.running_seen, None
    swap.ports.watcher.running()
    if seen is not None:
        pause = swap.ports.monotonic() - seen
        swap.note_if_possible(pauses=(*swap.notes.pauses, pause))
        longest = max(swap.notes.pauses)
        swap.measured({"pause_seconds": longest, "pause_source": "between-looks", "pauses": list(swap.notes.pauses)})

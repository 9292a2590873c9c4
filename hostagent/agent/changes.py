"""What differs between two looks at the host, as lines for the log. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from hostagent.agent.log import Level, Value
from hostagent.facts import Guest, GuestState, Host, QemuTree


@dataclass(frozen=True)
class Seen:
    """A guest, as far as lines are about it."""

    name: str
    state: GuestState
    reason: str
    runs: str  # its QEMU; "" when it is not known, or does not run
    outdated: bool


@dataclass(frozen=True)
class Change:
    """A line for the log."""

    event: str
    guest: str
    level: Level = Level.INFO
    more: tuple[tuple[str, Value], ...] = ()


def seen_on(host: Host) -> Mapping[str, Seen]:
    """The guests, by uuid."""
    return {guest.uuid: _seen(guest, host.system_qemu) for guest in host.guests}


def _seen(guest: Guest, own: QemuTree | None) -> Seen:
    runs = guest.qemu is not None and own is not None and guest.qemu.is_build_of(own)
    return Seen(
        name=guest.name,
        state=guest.state,
        reason=guest.state_reason,
        runs=(guest.qemu.package or str(guest.qemu.version)) if guest.qemu is not None else "",
        outdated=guest.state.active and own is not None and not runs,
    )


def changes(
    before: Mapping[str, Seen] | None, now: Mapping[str, Seen], *, told: Collection[str] = (), installed: str = ""
) -> Iterator[Change]:
    """What has become of guests since the look before; None: there was none.

    told: guests, by uuid, of which libvirt has told since: only their QEMU is looked at.
    """
    for uuid, guest in now.items():
        was = before.get(uuid) if before is not None else None
        if guest.outdated and not (was is not None and was.outdated):
            yield Change("qemu outdated", guest.name, more=(("runs", guest.runs or None), ("installed", installed)))
        elif was is not None and was.outdated and not guest.outdated and guest.state.active:
            yield Change("qemu current", guest.name, more=(("runs", guest.runs or None),))
        if before is None or uuid in told:
            continue
        if was is None:
            yield Change("guest came", guest.name, more=(("state", guest.state),))
        elif was.state is not guest.state:
            yield Change("guest changed", guest.name, more=(("state", guest.state), ("was", was.state)))
    for uuid, was in (before or {}).items():
        if uuid not in now and uuid not in told:
            yield Change("guest gone", was.name)


def left_standing(now: Mapping[str, Seen], in_open_updates: Collection[str]) -> Iterator[str]:
    """Guests, by uuid, that stand still in an update that nobody is at work on."""
    still = (GuestState.PAUSED_BY_OWNER, GuestState.PAUSED_OTHERWISE)
    for uuid, guest in now.items():
        if uuid in in_open_updates and guest.state in still:
            yield uuid

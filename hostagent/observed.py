"""What a look at the host shows that the journal does not know, reduced to what metrics and an agent need. Pure.

Nothing here holds a guest's definition: it may be kept for as long as the next look is away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hostagent.facts import Component, Freshness, Guest, GuestState, Host, QemuTree
from hostagent.plan import Blocker, Method, Reason, Technique, Way
from hostagent.planning.checks import handover_blockers, host_blockers
from hostagent.planning.guest_policy import Policies
from hostagent.planning.ladder import ways_of
from hostagent.planning.prediction import Past

QEMU = "qemu"
UNKNOWN_BUILD = "unknown"


@dataclass(frozen=True)
class SeenBlockers:
    """How many reasons of one kind are against updating a guest by one method."""

    guest: str  # its name
    method: Method
    reason: Reason
    number: int


@dataclass(frozen=True)
class Observed:
    """The host as it was at one moment."""

    at: float  # Unix time
    hostname: str
    update_domain: str  # of the host, by the settings; "": none
    guests: Mapping[GuestState, int]  # of each state that there is, 0 as well
    outdated: Mapping[str, int]  # by component: running guests on something that is not what is installed
    components: tuple[Component, ...]  # one for each QEMU build that guests run on
    blockers: tuple[SeenBlockers, ...]


def observe(
    host: Host,
    components: Sequence[Component],
    policies: Policies,
    past: Past | None = None,
    *,
    at: float,
    update_domain: str = "",
) -> Observed:
    """What was seen, as a plan to bring every running guest onto the system's QEMU would have it.

    Unlike in such a plan, guests that are up to date have their blockers too: the next upgrade finds the same ones.

    past: what was measured on this host; given, a predicted pause over a guest's budget is a blocker.
    """
    running = [guest for guest in host.guests if guest.state.active]
    states = Counter(guest.state for guest in host.guests)
    others = [component for component in components if component.name != QEMU]
    return Observed(
        at=at,
        hostname=host.hostname,
        update_domain=update_domain,
        guests={state: states[state] for state in GuestState},
        outdated={
            QEMU: sum(_is_outdated(guest, host.system_qemu) for guest in running),
            **{one.name: len(running) if one.freshness is Freshness.OUTDATED else 0 for one in others},
        },
        components=(*_builds(host, running), *others),
        blockers=tuple(seen for guest in running for seen in _blockers(host, guest, policies, past)),
    )


def _is_outdated(guest: Guest, own: QemuTree | None) -> bool:
    """Whether it would be on another QEMU if it were started now; one that nobody knows is not the system's."""
    return own is not None and not (guest.qemu is not None and guest.qemu.is_build_of(own))


def _builds(host: Host, running: Sequence[Guest]) -> Iterator[Component]:
    """Each QEMU that guests run on, beside the system's own."""
    own = host.system_qemu
    installed = _named(own) if own is not None else ""
    builds = {
        _named(guest.qemu) if guest.qemu is not None else UNKNOWN_BUILD: _freshness(guest, own) for guest in running
    }
    if not builds:
        yield Component(QEMU, "", installed, Freshness.NOT_THERE)
    for name, freshness in sorted(builds.items()):
        yield Component(QEMU, name, installed, freshness)


def _freshness(guest: Guest, own: QemuTree | None) -> Freshness:
    if own is None or guest.qemu is None:
        return Freshness.UNKNOWN
    return Freshness.CURRENT if guest.qemu.is_build_of(own) else Freshness.OUTDATED


def _named(tree: QemuTree) -> str:
    return tree.package or str(tree.version)


def _blockers(host: Host, guest: Guest, policies: Policies, past: Past | None) -> Iterator[SeenBlockers]:
    for way in ways_of(host, guest, policies.of(guest), past, to=host.system_qemu):
        counted = Counter(blocker.reason for blocker in _against(host, way))
        for reason in sorted(counted):
            yield SeenBlockers(guest.name, way.method, reason, counted[reason])


def _against(host: Host, way: Way) -> tuple[Blocker, ...]:
    """What is against that way, of the guest's own and of the host's."""
    if not way.method.in_place:
        return way.blockers
    of_host = host_blockers(host) + (() if way.technique is Technique.HOLD else handover_blockers(host))
    return tuple(dict.fromkeys((*way.blockers, *of_host)))

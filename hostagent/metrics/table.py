"""Every metric with its help text: most are folded from the journal, so it does not matter who ran an update, or when.

A scrape reads the journal and asks nobody else; what only a look at the host shows is that of the last look, and absent
without one. Rehearsals count in `hostagent_rehearsals_total` alone. A guest that waits for a person is counted once it
has ended for good; until then its update is among the open ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from hostagent.metrics import journal_figures as figures
from hostagent.metrics import look_figures as looks
from hostagent.metrics.journal_figures import Figures, Histogram, Labels, Values
from hostagent.observed import Observed


class Kind(Enum):
    """What Prometheus calls its types."""

    COUNTER = auto()
    GAUGE = auto()
    HISTOGRAM = auto()


class Merged(Enum):
    """What becomes of figures that are to have the same labels: names that look alike, or guests without names."""

    LAST = auto()  # the one of the update that ended last
    SUM = auto()
    EARLIEST = auto()


Source = TypeVar("Source", Figures, Observed)


@dataclass(frozen=True)
class Declared(Generic[Source]):
    """One metric, and where its values come from."""

    name: str
    kind: Kind
    labels: Labels
    help: str
    values: Callable[[Source], Values | Histogram]
    merged: Merged = Merged.LAST


# -- the table -----------------------------------------------------------------------------------------------------

OF_JOURNAL: tuple[Declared[Figures], ...] = (
    Declared("hostagent_build_info", Kind.GAUGE, ("version",), "Version of hostagent; always 1.", figures.build_info),
    Declared(
        "hostagent_guest_pause_seconds",
        Kind.HISTOGRAM,
        ("method", "technique", "component"),
        "How long updated guests stood still, from the last instruction before to the first after.",
        figures.pauses,
    ),
    Declared(
        "hostagent_pause_phase_seconds",
        Kind.HISTOGRAM,
        ("phase",),
        "How long the steps took that updated guests stood still in.",
        figures.phases,
    ),
    Declared(
        "hostagent_guest_reboot_seconds",
        Kind.HISTOGRAM,
        ("phase",),
        "How long guests that were updated by a reboot were shut off (down), and then took to boot (boot).",
        figures.reboots,
    ),
    Declared(
        "hostagent_guest_clock_offset_seconds",
        Kind.GAUGE,
        ("guest", "when"),
        "Guest clock minus host clock at the guest's last update: before the pause, as it resumed, after setting.",
        figures.clock_offsets,
    ),
    Declared(
        "hostagent_guest_clock_bound_seconds",
        Kind.GAUGE,
        ("guest",),
        "How far the true clock offset may be from the last one measured, either way.",
        figures.clock_bounds,
    ),
    Declared(
        "hostagent_guest_clock_uncorrected",
        Kind.GAUGE,
        ("guest", "reason"),
        "1 for each guest whose clock was left as it was by its last update, with the reason; absent for all others.",
        figures.uncorrected_clocks,
    ),
    Declared(
        "hostagent_guest_updates_total",
        Kind.COUNTER,
        ("method", "component", "outcome"),
        "Guests that went through an update, by how it ended for them.",
        figures.guest_updates,
    ),
    Declared(
        "hostagent_budget_exceeded_total",
        Kind.COUNTER,
        ("method",),
        "Guests that stood still for longer than their budget.",
        figures.over_budget,
    ),
    Declared(
        "hostagent_rollbacks_total",
        Kind.COUNTER,
        ("reason",),
        "Guests that were brought back to run as before, by the kind of error.",
        figures.rollbacks,
    ),
    Declared(
        "hostagent_guest_last_pause_seconds",
        Kind.GAUGE,
        ("guest", "method"),
        "How long a guest stood still when it was last updated.",
        figures.last_pauses,
    ),
    Declared(
        "hostagent_journal_open_updates",
        Kind.GAUGE,
        (),
        "Updates and rehearsals that are under way, or wait for hostagent recover.",
        figures.open_updates,
    ),
    Declared(
        "hostagent_last_update_timestamp_seconds",
        Kind.GAUGE,
        ("outcome",),
        "When the last update with this outcome ended, Unix time.",
        figures.last_updates,
    ),
    Declared(
        "hostagent_rehearsals_total",
        Kind.COUNTER,
        ("outcome",),
        "Rehearsals with throw-away guests, by how they ended.",
        figures.rehearsals,
    ),
    Declared(
        "hostagent_fallbacks_total",
        Kind.COUNTER,
        ("from", "to", "reason"),
        "Guests that went on by a lower method of their ladder, by the kind of error that undid the one before.",
        figures.fallbacks,
    ),
    Declared(
        "hostagent_guest_budget_seconds",
        Kind.GAUGE,
        ("guest",),
        "The longest pause that the guest was allowed at its last update.",
        figures.budgets,
    ),
    Declared(
        "hostagent_guest_paused_since_timestamp_seconds",
        Kind.GAUGE,
        ("guest",),
        "Since when the guest stands still for an update, Unix time; absent for all others.",
        figures.paused_since,
        Merged.EARLIEST,
    ),
    Declared(
        "hostagent_update_state",
        Kind.GAUGE,
        ("state",),
        "1 for what the journal says is going on; an updater that died leaves it so until hostagent recover.",
        figures.update_state,
    ),
)

OF_LOOK: tuple[Declared[Observed], ...] = (
    Declared(
        "hostagent_host_info",
        Kind.GAUGE,
        ("hostname", "update_domain"),
        "This host, and its update domain by the settings; always 1.",
        looks.host_info,
    ),
    Declared(
        "hostagent_component_info",
        Kind.GAUGE,
        ("component", "running", "installed", "freshness"),
        "What runs of a component, and what is installed; a series for each QEMU that guests run on. Always 1.",
        looks.component_info,
    ),
    Declared(
        "hostagent_component_outdated",
        Kind.GAUGE,
        ("component",),
        "1 if what runs of a component, or some of it, is not what is installed, else 0.",
        looks.components_outdated,
    ),
    Declared(
        "hostagent_guests",
        Kind.GAUGE,
        ("state",),
        "Guests of the host, by state.",
        looks.guests,
    ),
    Declared(
        "hostagent_guests_outdated",
        Kind.GAUGE,
        ("component",),
        "Guests that run on something of a component that is not what is installed.",
        looks.guests_outdated,
    ),
    Declared(
        "hostagent_guest_blockers",
        Kind.GAUGE,
        ("guest", "method", "reason"),
        "How many reasons of that kind are against updating a running guest by that method.",
        looks.blockers,
        Merged.SUM,
    ),
    Declared(
        "hostagent_last_look_timestamp_seconds",
        Kind.GAUGE,
        (),
        "When the host was looked at, Unix time: so old are the guests, components and blockers here.",
        looks.looked,
    ),
)

METRICS: tuple[Declared[Figures] | Declared[Observed], ...] = (*OF_JOURNAL, *OF_LOOK)

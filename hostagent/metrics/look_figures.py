"""What a look at the host shows, counted: one function for each metric of `table.py`. Pure."""

from __future__ import annotations

from enum import StrEnum

from hostagent.facts import Freshness
from hostagent.metrics.journal_figures import Values
from hostagent.observed import Observed


def label(word: StrEnum) -> str:
    """Of a word for people, the one for a label: ``paused-by-owner``."""
    return word.name.lower().replace("_", "-")


def host_info(seen: Observed) -> Values:
    """Which host this is."""
    return {(seen.hostname, seen.update_domain): 1}


def component_info(seen: Observed) -> Values:
    """What runs of each component, and what is installed."""
    return {(one.name, one.running, one.installed, label(one.freshness)): 1 for one in seen.components}


def components_outdated(seen: Observed) -> Values:
    """Whether what runs of each component is not what is installed."""
    outdated = {one.name for one in seen.components if one.freshness is Freshness.OUTDATED}
    return {(one.name,): float(one.name in outdated) for one in seen.components}


def guests(seen: Observed) -> Values:
    """Guests by state."""
    return {(label(state),): number for state, number in seen.guests.items()}


def guests_outdated(seen: Observed) -> Values:
    """Guests on what is not installed any more, by component."""
    return {(component,): number for component, number in seen.outdated.items()}


def blockers(seen: Observed) -> Values:
    """What is against updating each guest."""
    return {(one.guest, one.method, one.reason): one.number for one in seen.blockers}


def looked(seen: Observed) -> Values:
    """When that was."""
    return {(): seen.at}

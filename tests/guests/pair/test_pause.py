"""The pause that is reported is the one that the guest lived through."""

from statistics import median

from tests.guests.pair.passages import Crossing

TICK_NS = 10_000_000


def reported_ns(crossing: Crossing) -> float:
    return float(str(crossing.record.measured["pause_seconds"])) * 1e9


def fineness_ns(crossing: Crossing) -> int:
    """Two ticks, which is how finely the guest looks, and what it also feels when nothing happens."""
    return 2 * TICK_NS + crossing.idle.p99_ns


def test_reported_pause_is_within_the_one_that_was_felt(stopped: Crossing) -> None:
    """QEMU says that it has stopped once all of it has, which a busy machine may delay, but not past the step's end."""
    least, most = (seconds * 1e9 for seconds in stopped.by_journal)
    assert least <= reported_ns(stopped) <= most
    felt, fineness = stopped.felt.stood_still_ns, fineness_ns(stopped)
    assert reported_ns(stopped) - fineness <= felt <= most + fineness


def test_reported_pauses_are_those_that_were_felt(crossings: dict[tuple[str, str], Crossing]) -> None:
    found = [crossing for (way, _), crossing in crossings.items() if way != "undone-beside"]
    amiss = [abs(reported_ns(crossing) - crossing.felt.stood_still_ns) for crossing in found]
    assert median(amiss) <= median(map(fineness_ns, found))


def test_pause_was_stamped_by_qemu(stopped: Crossing) -> None:
    assert stopped.record.measured["pause_source"] == "qemu"


def test_guest_felt_nothing_of_the_kind_before(stopped: Crossing) -> None:
    """Else it would be the machine's other work that was measured."""
    assert stopped.idle.stood_still_ns < stopped.felt.stood_still_ns <= stopped.felt.longest_ns + fineness_ns(stopped)

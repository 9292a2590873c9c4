"""The pause that is reported is the one that the guest lived through."""

from tests.guests.pair.passages import Crossing

TICK_NS = 10_000_000


def test_reported_pause_is_the_one_that_was_felt(stopped: Crossing) -> None:
    """Within two ticks, which is how finely the guest looks, and what it also feels when nothing happens."""
    reported = float(str(stopped.record.measured["pause_seconds"])) * 1e9
    assert abs(reported - stopped.felt.stood_still_ns) <= 2 * TICK_NS + stopped.idle.p99_ns


def test_pause_was_stamped_by_qemu(stopped: Crossing) -> None:
    assert stopped.record.measured["pause_source"] == "qemu"


def test_guest_felt_nothing_of_the_kind_before(stopped: Crossing) -> None:
    """Else it would be the machine's other work that was measured."""
    assert stopped.idle.stood_still_ns < stopped.felt.stood_still_ns <= stopped.felt.longest_ns

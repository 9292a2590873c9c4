"""A guest comes out of a handover as it went in, whether the handover was completed or undone."""

from tests.guests.pair.passages import Crossing


def test_a_reason_is_given_exactly_if_it_was_undone(crossing: Crossing) -> None:
    assert bool(crossing.record.reason) is crossing.undone


def test_undone_handover_had_come_as_far_as_meant(
    crossings: dict[tuple[str, str], Crossing],
) -> None:
    """Else less was undone than these tests are about."""
    for (way, _), crossing in crossings.items():
        if crossing.undone:
            assert crossing.record.progress.begun[-1] == ("start" if way == "undone-beside" else "switch")


def test_old_qemu_runs_it_exactly_if_it_was_undone(crossing: Crossing) -> None:
    assert (crossing.after.pid == crossing.before.pid) is crossing.undone


def test_nothing_in_the_guest_was_lost(crossing: Crossing) -> None:
    assert crossing.checked.good
    assert crossing.checked.boot_id == crossing.report.boot_id


def test_traffic_goes_both_ways_afterwards(crossing: Crossing) -> None:
    """All that was on its way as it was looked at has come back, too."""
    before, after = crossing.report.tcp, crossing.checked.tcp
    assert after.sent > before.sent
    assert after.acked >= before.sent

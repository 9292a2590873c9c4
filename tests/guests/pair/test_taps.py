"""A tap that two QEMUs share for a while is for the guest what it was before, also when the handover is undone."""

from tests.guests.pair.passages import Crossing


def test_tap_is_as_before(crossing: Crossing) -> None:
    assert crossing.after.tap == crossing.before.tap


def test_header_has_the_length_that_the_guest_expects(crossing: Crossing) -> None:
    """12 bytes for every device of virtio 1, whether it merges buffers or not (virtio specification, 5.1.6)."""
    assert crossing.after.tap.header_length == 12


def test_offloads_are_there_to_be_lost(crossing: Crossing) -> None:
    """Else the comparison would have nothing to compare."""
    assert crossing.before.tap.offloads != 0

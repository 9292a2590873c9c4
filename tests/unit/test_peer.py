"""What guests' ticks say of a pause, whatever keeps them from arriving in time."""

from tests.bench.peer import NEAR, _Ticker

MS = 1_000_000
EVERY = 10 * MS


class Guest:
    """Its clock, the host's, and what arrives there."""

    def __init__(self) -> None:
        self.ticker = _Ticker()
        self.host = self.guest = self.number = 0

    def tick(self, count: int, *, late: int = 0) -> None:
        """By the host's clock each arrives so late."""
        for _ in range(count):
            self._pass(EVERY)
            self._send(self.host + late)

    def pause(self, ns: int) -> None:
        self.host += ns

    def held_up(self, ns: int) -> None:
        """It ticks, but all that it sends arrives at the end, at once."""
        ends = self.host + ns
        while self.host + EVERY <= ends:
            self._pass(EVERY)
            self._send(ends)

    def _pass(self, ns: int) -> None:
        self.host, self.guest = self.host + ns, self.guest + ns

    def _send(self, at: int) -> None:
        self.number += 1
        self.ticker.arrived(self.number, at, self.guest, self.guest)


def test_a_pause_is_what_its_clock_lost() -> None:
    guest = Guest()
    guest.tick(200)
    guest.pause(500 * MS)
    guest.tick(200)
    assert guest.ticker.stood_still_ns() == 500 * MS
    (absence,) = guest.ticker.absences(300 * MS)
    assert absence.ended_ns - absence.begun_ns == 500 * MS + EVERY


def test_ticks_that_are_held_up_are_no_pause() -> None:
    """Three seconds of them, as where QEMU's thread for the network has lost the processor."""
    guest = Guest()
    for _ in range(2):
        guest.tick(200)
        guest.held_up(3000 * MS)
    guest.tick(NEAR)
    assert guest.ticker.stood_still_ns() == 0
    assert guest.ticker.absences(300 * MS) == ()


def test_a_pause_is_told_from_what_is_held_up_around_it() -> None:
    guest = Guest()
    guest.tick(200)
    guest.held_up(3000 * MS)
    guest.pause(500 * MS)
    guest.held_up(2000 * MS)
    guest.tick(200)
    assert guest.ticker.stood_still_ns() == 500 * MS


def test_the_last_tick_is_late_and_nothing_stood_still() -> None:
    guest = Guest()
    guest.tick(200)
    guest.tick(NEAR - 1, late=400 * MS)
    assert guest.ticker.stood_still_ns() == 0
    assert guest.ticker.absences(300 * MS) == ()


def test_the_slowest_second_after_a_pause_is_told_by_the_ticks_that_were_due() -> None:
    guest = Guest()
    guest.tick(200)
    guest.pause(500 * MS)
    guest.tick(100)
    guest.tick(100)
    assert guest.ticker.slowest_second() > 0.97
    guest = Guest()
    guest.tick(200)
    guest.pause(500 * MS)
    for _ in range(60):  # half of the time it waits for its RAM
        guest.pause(EVERY)
        guest.tick(1)
    guest.tick(200)
    assert 0.48 < guest.ticker.slowest_second() < 0.56

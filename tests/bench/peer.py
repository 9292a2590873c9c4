"""The host's end of what test guests send: echoes their lines, and measures the gaps that a pause makes.

A guest cannot see its own pause: its clocks stand still with it. Seen from here its ticks, one datagram
every 10 ms, stop and come again. The kernel stamps each datagram as it arrives, so that a busy test does not
look like a pause of the guest.
"""

import selectors
import socket
import struct
import threading
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

ECHO_PORT = 7001
TICK_PORT = 7002
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; not in Python's socket module
SECOND_NS = 1_000_000_000
NEIGHBOURS = 100
"""Ticks on either side of a gap that are looked at: one second."""
NEAR = 20
"""The same where it matters which gap it was."""
ENOUGH_NS = SECOND_NS
"""After a gap that many, or those of so long, are needed: each may be late by itself."""
TOGETHER_NS = 2_000_000_000
"""After a gap more of them are looked at that arrive within this: who lost the processor sends all that it has at once,
and only the last of those has the least delay."""
LIMIT = 180.0
"""Seconds after which ticks that must come are taken for such that never do."""
ROOM = 1 << 20
"""Bytes of arrived datagrams that the kernel keeps for us."""


@dataclass(frozen=True)
class Felt:
    """Gaps between the ticks of one guest as they arrived at the host, in ns."""

    ticks: int
    longest_ns: int
    longest_at_ns: int
    """Wall clock of the host when the longest gap ended."""
    stood_still_ns: int
    """How much the guest's own clock lost against the host's at once: the pause as the guest lived it.

    An emulated guest also runs slowly for some tenths of a second after it moved to another QEMU, whose translation
    cache is empty. The gap between arrivals holds that as well; its clock runs on meanwhile, so this does not.
    """
    p99_ns: int
    lost: int
    """Ticks that were sent and never arrived, or arrived out of turn."""
    wall_behind_ns: int
    """How far the guest's wall clock was behind the host's in the last second, by the tick with the least delay."""


@dataclass(frozen=True)
class Absence:
    """A time in which nothing came from a guest, by the host's clock, ns since 1970."""

    begun_ns: int
    ended_ns: int

    def overlaps(self, other: "Absence") -> bool:
        return self.begun_ns < other.ended_ns and other.begun_ns < self.ended_ns


@dataclass
class _Ticker:
    last_ns: int = 0
    last_number: int = 0
    lost: int = 0
    longest_ns: int = 0
    longest_at_ns: int = 0
    gaps: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # when each gap ended
    behind: list[int] = field(default_factory=list)  # host's clock less the guest's, one per gap, at its end
    wall_behind: deque[int] = field(default_factory=lambda: deque(maxlen=NEIGHBOURS))

    def arrived(self, number: int, at_ns: int, guest_ns: int, guest_wall_ns: int) -> None:
        self.wall_behind.append(at_ns - guest_wall_ns)
        if self.last_ns:
            gap = at_ns - self.last_ns
            if gap > self.longest_ns:
                self.longest_ns, self.longest_at_ns = gap, at_ns
            self.gaps.append(gap)
            self.ends.append(at_ns)
            self.behind.append(at_ns - guest_ns)
            self.lost += abs(number - self.last_number - 1)
        self.last_ns, self.last_number = at_ns, number

    def stood_still_ns(self) -> int:
        """The largest step in the guest's lag; at which gap is not known, since the longest may be mere load.

        The least lag on either side of a gap has the least of the network's and the scheduler's delay in it.
        """
        return max((self._step_over(index) for index in range(len(self.gaps))), default=0)

    def _step_over(self, index: int, neighbours: int = NEIGHBOURS) -> int:
        together = bisect_right(self.ends, self.ends[index] + TOGETHER_NS)
        before = self.behind[max(0, index - neighbours) : index]
        after = self.behind[index : max(index + neighbours, together)]
        enough = len(after) >= NEAR or self.ends[-1] - self.ends[index] >= ENOUGH_NS
        return min(after) - min(before) if before and enough else 0

    def slowest_second(self) -> float:
        """Of the ticks of a second before the longest gap, the share that came in the slowest one of two after it."""
        if not self.gaps:
            return 1.0
        at = self.gaps.index(self.longest_ns)
        end = self.ends[at]
        before = at - bisect_right(self.ends, end - self.longest_ns - SECOND_NS)
        starts = [one for one in self.ends[at:] if one <= end + SECOND_NS <= self.ends[-1]]
        after = [bisect_right(self.ends, one + SECOND_NS) - bisect_right(self.ends, one) for one in starts]
        return min(after, default=before) / before if before > 0 else 1.0

    def absences(self, at_least_ns: int) -> tuple[Absence, ...]:
        """Gaps of that length over which the guest's clock lost as much: it stood still, and was not only slow.

        Which one of two near each other it was cannot be told: they are one, from the first to the last.
        """
        found: list[tuple[int, Absence]] = []
        for index, (gap, end) in enumerate(zip(self.gaps, self.ends, strict=True)):
            if gap < at_least_ns or self._step_over(index, NEAR) < at_least_ns:
                continue
            begun = end - gap
            if found and index - found[-1][0] <= NEAR:
                begun = found.pop()[1].begun_ns
            found.append((index, Absence(begun, end)))
        return tuple(absence for _, absence in found)

    def felt(self) -> Felt:
        ordered = sorted(self.gaps)
        p99 = ordered[int(len(ordered) * 0.99)] if ordered else 0
        return Felt(
            ticks=len(ordered),
            longest_ns=self.longest_ns,
            longest_at_ns=self.longest_at_ns,
            stood_still_ns=self.stood_still_ns(),
            p99_ns=p99,
            lost=self.lost,
            wall_behind_ns=min(self.wall_behind, default=0),
        )


class Peer:
    """`with Peer("10.77.0.1") as peer:` serves guests from a thread of its own."""

    def __init__(self, address: str) -> None:
        self._lock = threading.Lock()
        self._tickers: dict[str, _Ticker] = {}
        self._connections: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._boots = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((address, ECHO_PORT))
        self._ticks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._ticks.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._ticks.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self._ticks.bind((address, TICK_PORT))
        self._wake, self._woken = socket.socketpair()
        for source, serve in (
            (self._listener, self._accept),
            (self._ticks, self._take_ticks),
        ):
            source.setblocking(False)
            self._selector.register(source, selectors.EVENT_READ, serve)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name="peer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._wake.close()
        self._selector.close()

    def felt(self, guest_address: str) -> Felt:
        """What this guest's ticks say since the start or the last reset; `wait_for_ticks` first, after a pause."""
        with self._lock:
            self._hear()
            return self._tickers.get(guest_address, _Ticker()).felt()

    def absences(self, guest_address: str, at_least_ns: int) -> tuple[Absence, ...]:
        """When this guest stood still for that long, since the start or the last reset; the same holds as of `felt`."""
        with self._lock:
            self._hear()
            return self._tickers.get(guest_address, _Ticker()).absences(at_least_ns)

    def slowest_second(self, guest_address: str) -> float:
        """How a guest got on after its longest gap, as its RAM and its translated code are not there yet; 1: as before.

        Of the ticks that had come in the second before it. A second of them has to come before the gap, two after it.
        """
        with self._lock:
            self._hear()
            return self._tickers.get(guest_address, _Ticker()).slowest_second()

    def reset(self, guest_address: str) -> None:
        """Forgets the gaps so far; the next one counts from the last tick that arrived."""
        with self._lock:
            self._hear()
            before = self._tickers.get(guest_address, _Ticker())
            self._tickers[guest_address] = _Ticker(before.last_ns, before.last_number)

    def wait_for_ticks(self, *guests: str, count: int = NEIGHBOURS) -> None:
        """Until so many more of each address have arrived: as many as it takes to tell how late they are."""
        wanted, ends = {guest: self._count(guest) + count for guest in guests}, time.monotonic() + LIMIT
        for guest, number in wanted.items():
            while (found := self._count(guest)) < number:
                assert time.monotonic() < ends, f"expected {number} ticks of {guest}, found {found}"
                time.sleep(0.05)

    def _count(self, guest_address: str) -> int:
        with self._lock:
            return len(self._tickers.get(guest_address, _Ticker()).gaps)

    def connections(self, guest_address: str) -> int:
        """How often this guest has connected."""
        with self._lock:
            return self._connections.get(guest_address, 0)

    def boots(self) -> int:
        """How often a guest began to count its ticks: each one that was started, and that started itself anew."""
        with self._lock:
            self._hear()
            return self._boots

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                key.data(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        connection, (address, _) = listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._connections[address] = self._connections.get(address, 0) + 1
        self._selector.register(connection, selectors.EVENT_READ, self._echo)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
            if data:
                connection.sendall(data)
                return
        except OSError:
            pass
        self._selector.unregister(connection)
        connection.close()

    def _take_ticks(self, _ticks: socket.socket) -> None:
        with self._lock:
            self._hear()

    def _hear(self) -> None:
        """All that has arrived by now, also if the thread that waits for it has not had its turn."""
        while True:
            try:
                data, ancillary, _, sender = self._ticks.recvmsg(256, 64)
            except BlockingIOError:
                return
            seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
            ticker = self._tickers.setdefault(sender[0], _Ticker())
            number, guest_ns, guest_wall_ns = (int(word) for word in data.split())
            last = self._last.get(sender[0])
            self._boots += last is None or number < last - NEAR  # some may overtake each other
            self._last[sender[0]] = number
            ticker.arrived(number, seconds * 1_000_000_000 + nanoseconds, guest_ns, guest_wall_ns)

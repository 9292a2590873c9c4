"""How long guests stand still, by hostagent and by what people use instead: python -m bench.pauses [--quick].

All ways are gone in turn, so that whatever the machine does meanwhile is shared by all. Runs in the bench. Leaves
build/bench.json, and the same as a table in build/bench.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import libvirt
from rich.console import Console

from bench import scaling, ways
from bench.crowds import Crowd
from bench.raw import BOOT_LIMIT, RawGuest
from bench.report import Looked, Report
from bench.series import IDLE, Of, Sample, series
from bench.ways import MACHINE, Stage, Way
from tests.bench.guest_spec import HOST_ADDRESS, GuestSpec, Ram
from tests.bench.lab import Lab
from tests.bench.peer import Peer
from tests.bench.soak import flood
from tests.bench.two_hosts import two_hosts
from tests.hosts.guests import guest

OVERHEAD_MIB = 192  # what the test guest has beside what it fills
RAM_MIB = 17 << 10  # for guests' RAM on each of the two hosts; little of it is used at a time
TICKS = 200  # after a pause: enough to tell how late they are by themselves, and how the guest gets on
WRITTEN_MIB = 64  # a second, by a guest that has something to do


@dataclass(frozen=True)
class Asked:
    """What is measured: each way so often with a guest of each size."""

    sizes: tuple[int, ...]  # MiB that are filled
    all_ways_at: int  # the others are measured by the ways that RAM's size could matter to
    times: int
    loads_at: int = 0  # MiB that are filled by a guest that has something to do; 0: there is none
    crowds: tuple[int, ...] = ()  # guests that are updated at once


FULL = Asked((512, 2048, 6144), 2048, 7, 512, (1, 4, 16))
QUICK = Asked((256,), 256, 2)


def measured(stage: Stage, way: Way, load: str = IDLE, busy: AbstractContextManager[None] | None = None) -> Sample:
    """Gone once: what the guest felt, and what is said of it."""
    address = way.spec.address
    way.ready()
    with busy or nullcontext():
        stage.peer.wait_for_ticks(address)
        stage.peer.reset(address)
        stage.peer.wait_for_ticks(address)
        told = way.go()
        stage.peer.wait_for_ticks(address, count=TICKS)
    felt, slowest = stage.peer.felt(address), stage.peer.slowest_second(address)
    pause = (felt.stood_still_ns if way.clock_stops else felt.longest_ns) / 1e9
    of = Of(way.method, way.spec.fill_mib, load=load)
    return Sample(of, pause, told.seconds if told else None, slowest, told.phases if told else {})


def spec_of(name: str, index: int, fill_mib: int, ram: Ram = Ram.FILE, emulator: str | None = None) -> GuestSpec:
    memory = fill_mib + OVERHEAD_MIB + fill_mib // 16  # its kernel keeps a book of each page, and some free
    return GuestSpec(name, index, memory, MACHINE, ram=ram, fill_mib=fill_mib, emulator=emulator)


@contextmanager
def guests(stage: Stage, fill_mib: int, *, all_ways: bool) -> Iterator[Sequence[Way]]:
    """Guests that are alike but for what the ways want, and all that they can go."""
    newer = stage.lab.newer.emulator
    host, own, bare = stage.hosts.a, spec_of("own", 1, fill_mib), spec_of("bare", 2, fill_mib)
    # Of the newer QEMU: an older one that emulates forgets writes as its guest migrates (facts.loses_writes).
    ordinary, travelling = spec_of("ordinary", 3, fill_mib, Ram.ANONYMOUS), spec_of("away", 4, fill_mib, emulator=newer)
    with ExitStack() as stack:
        stack.enter_context(host.guest(own))
        stack.callback(host.remove_guest, ordinary)
        alone = [stack.enter_context(RawGuest(bare, stage.lab.system.emulator, stage.native(bare)))]
        if all_ways:
            stack.enter_context(guest(stage.hosts, travelling))
            by_cpr = spec_of("by cpr", 5, fill_mib)
            alone.append(stack.enter_context(RawGuest(by_cpr, newer, stage.native(by_cpr), cpr=True)))
        stage.proof(own).wait_booted(BOOT_LIMIT)
        for one in alone:
            stage.peer.wait_for_ticks(one.spec.address)
            one.wait_filled()
        found = [*ways.kept(stage, own), *ways.alone(stage, alone[0])]
        if all_ways:
            found += [ways.copied(stage, ordinary), ways.migrated(stage, travelling), ways.by_cpr(stage, alone[1])]
            found += [*ways.saved(stage, own), ways.rebooted(stage, own)]
        elif has_room_for_three(fill_mib):
            found += [next(ways.saved(stage, own))]
        yield found
        assert stage.proof(own).check().good
        stage.moves.clear()


@contextmanager
def by_itself(stage: Stage, fill_mib: int) -> Iterator[Sequence[Way]]:
    """One that leaves no room for another beside it and its saved RAM."""
    own = spec_of("own", 1, fill_mib)
    with stage.hosts.a.guest(own):
        stage.proof(own).wait_booted(BOOT_LIMIT)
        yield next(ways.kept(stage, own)), next(ways.saved(stage, own))
        assert stage.proof(own).check().good
        stage.moves.clear()


def has_room_for_three(fill_mib: int) -> bool:
    """Of the RAM of two guests and what is saved of one."""
    return 3 * (fill_mib + OVERHEAD_MIB) < RAM_MIB


def of_sizes(stage: Stage, asked: Asked) -> Iterator[Sample]:
    for size in asked.sizes:
        with guests(stage, size, all_ways=size == asked.all_ways_at) as found:
            yield from in_turn(stage, found, asked.times)
        if not has_room_for_three(size):
            with by_itself(stage, size) as found:
                yield from in_turn(stage, found, asked.times)


def in_turn(stage: Stage, found: Sequence[Way], times: int) -> Iterator[Sample]:
    for turn in range(times):
        for way in found if turn % 2 == 0 else reversed(found):  # each goes up, and back in its turn
            yield measured(stage, way)


@contextmanager
def writing(stage: Stage, spec: GuestSpec) -> Iterator[None]:
    """The guest writes to its RAM meanwhile."""
    stage.proof(spec).rewrite(WRITTEN_MIB)
    yield
    stage.proof(spec).rewrite(0)


def of_loads(stage: Stage, asked: Asked) -> Iterator[Sample]:
    """Guests that have something to do. Each writes a record to its disk a hundred times a second in any case."""
    own, ordinary = spec_of("own", 1, asked.loads_at), spec_of("ordinary", 3, asked.loads_at, Ram.ANONYMOUS)
    loads: dict[str, Callable[[GuestSpec], AbstractContextManager[None]]] = {
        f"writes {WRITTEN_MIB} MiB/s": lambda spec: writing(stage, spec),
        "1000 packets/s": lambda spec: flood(spec.address),
    }
    with ExitStack() as stack:
        stack.enter_context(stage.hosts.a.guest(own))
        stack.callback(stage.hosts.a.remove_guest, ordinary)
        stage.proof(own).wait_booted(BOOT_LIMIT)
        found = (*ways.kept(stage, own), ways.copied(stage, ordinary))
        for turn in range(asked.times):
            for way in found:
                for name in loads if turn % 2 == 0 else reversed(loads):
                    yield measured(stage, way, name, loads[name](way.spec))
        assert stage.proof(own).check().good
        stage.moves.clear()


def run(asked: Asked) -> None:
    """All that is asked for; what there is by then is kept after each part."""
    out, samples = Console(width=None if sys.stdout.isatty() else 130, highlight=False), list[Sample]()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    with two_hosts(ram=f"{RAM_MIB}m") as hosts, Peer(HOST_ADDRESS) as peer:
        stage = Stage(hosts, peer, Lab.set_up(start=hosts.a.start_command))
        stage.lab.install_hook()
        hosts.a.restart_libvirtd()
        crowds = [Crowd(stage, count) for count in asked.crowds]

        def report(looked: Looked) -> Report:
            return Report(
                asked.all_ways_at, series(samples), {one.count: one.away for one in crowds if one.away}, looked
            )

        parts = [of_sizes(stage, asked), *([of_loads(stage, asked)] if asked.loads_at else [])]
        for part in (*parts, *(crowd.samples() for crowd in crowds)):
            for sample in part:
                samples.append(sample)
                out.print(f"{sample.of}: {sample.felt * 1000:.1f} ms")
            report({}).keep()
    whole = report(scaling.measured() if crowds else {})
    whole.keep()
    whole.show(out)


def main() -> int:
    run(QUICK if "--quick" in sys.argv[1:] else FULL)
    return 0


if __name__ == "__main__":
    sys.exit(main())

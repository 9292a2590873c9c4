"""How long guests stand still, by hostagent and by what people use instead: python -m bench.pauses [--quick].

All ways are gone in turn, so that whatever the machine does meanwhile is shared by all. Runs in the bench. Leaves
build/bench.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import libvirt
from rich.console import Console
from rich.table import Table

from bench import ways
from bench.raw import RawGuest
from bench.series import Of, Sample, Series, ratios, series
from bench.ways import BOOT_LIMIT, Stage, Way
from tests.bench.cost import wait
from tests.bench.demo import machine
from tests.bench.guest_spec import HOST_ADDRESS, GuestSpec, Ram
from tests.bench.lab import Lab
from tests.bench.paths import BUILD
from tests.bench.peer import Peer
from tests.bench.two_hosts import two_hosts
from tests.hosts.guests import guest

RESULT = BUILD / "bench.json"
MACHINE = "pc-q35-7.2"  # which both QEMUs have
OVERHEAD_MIB = 192  # what the test guest has beside what it fills
TICKS = 200  # after a pause: enough to tell how late they are by themselves
RATIOS = (
    ("handover_kept", "limit"),
    ("handover_kept", "save_restore"),
    ("handover_copied", "live_migration"),
    ("hold", "raw_hold"),
    ("hold", "save_restore"),
)


@dataclass(frozen=True)
class Asked:
    """What is measured: each way so often with a guest of each size."""

    sizes: tuple[int, ...]  # MiB that are filled
    all_ways_at: int  # the others are measured by the ways that RAM's size could matter to
    times: int


FULL = Asked((512, 2048, 6144), 2048, 7)
QUICK = Asked((256,), 256, 2)


def measured(stage: Stage, way: Way) -> Sample:
    """Gone once: what the guest felt, and what is said of it."""
    address = way.spec.address
    way.ready()
    stage.peer.wait_for_ticks(address)
    stage.peer.reset(address)
    stage.peer.wait_for_ticks(address)
    said = way.go()
    stage.peer.wait_for_ticks(address, TICKS)
    felt = stage.peer.felt(address)
    pause = felt.stood_still_ns if way.clock_stops else felt.longest_ns
    return Sample(Of(way.method, way.spec.fill_mib), pause / 1e9, said if isinstance(said, float) else None)


@contextmanager
def guests(stage: Stage, fill_mib: int, *, all_ways: bool) -> Iterator[Sequence[Way]]:
    """Guests that are alike but for what the ways want, and all that they can go."""

    def spec(name: str, index: int, ram: Ram = Ram.FILE, emulator: str | None = None) -> GuestSpec:
        memory = fill_mib + OVERHEAD_MIB
        return GuestSpec(name, index, memory, MACHINE, ram=ram, fill_mib=fill_mib, emulator=emulator)

    host, own, bare = stage.hosts.a, spec("own", 1), spec("bare", 2)
    # Of the newer QEMU: an older one that emulates forgets writes as its guest migrates (facts.loses_writes).
    ordinary, travelling = spec("ordinary", 3, Ram.ANONYMOUS), spec("travelling", 4, emulator=stage.lab.newer.emulator)
    with ExitStack() as stack:
        stack.enter_context(host.guest(own))
        stack.callback(host.remove_guest, ordinary)
        alone = stack.enter_context(RawGuest(bare, stage.lab.system.emulator))
        if all_ways:
            stack.enter_context(guest(stage.hosts, travelling))
        stage.proof(own).wait_booted(BOOT_LIMIT)
        stage.peer.wait_for_ticks(bare.address)
        wait(lambda: alone.filled, "the guest without libvirt to fill its RAM", BOOT_LIMIT)
        by_hostagent = (*ways.kept(stage, own), *((ways.copied(stage, ordinary),) if all_ways else ()))
        by_libvirt = (*ways.saved(stage, own), *((ways.migrated(stage, travelling),) if all_ways else ()))
        last = (ways.rebooted(stage, own),) if all_ways else ()
        yield (*by_hostagent, *by_libvirt, *ways.alone(stage, alone), *last)
        assert stage.proof(own).check().good
        stage.moves.clear()


def document(found: Sequence[Series]) -> dict[str, object]:
    return {
        "machine": machine(),
        "series": [one.to_json() for one in found],
        "ratios": dict(ratios(found, RATIOS)),
    }


def show(found: Sequence[Series], out: Console) -> None:
    limits = {one.of.ram_mib: one.median for one in found if one.of.method == "limit"}
    table = Table(title="How long a guest stands still")
    for column in ("method", "RAM MiB", "n", "median ms", "p95 ms", "of the limit"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for one in sorted(found, key=lambda one: (one.of.ram_mib, one.median)):
        limit = limits.get(one.of.ram_mib)
        table.add_row(
            one.of.method,
            f"{one.of.ram_mib}",
            f"{len(one.felt)}",
            f"{one.median * 1000:.1f}",
            f"{one.p95 * 1000:.1f}",
            f"{one.median / limit:.2f}" if limit else "",
        )
    out.print(table)


def main() -> int:
    asked = QUICK if "--quick" in sys.argv[1:] else FULL
    out, samples = Console(width=None if sys.stdout.isatty() else 110, highlight=False), list[Sample]()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    with two_hosts(ram="17g") as hosts, Peer(HOST_ADDRESS) as peer:
        stage = Stage(hosts, peer, Lab.set_up(start=hosts.a.start_command))
        stage.lab.install_hook()
        hosts.a.restart_libvirtd()
        for size in asked.sizes:
            with guests(stage, size, all_ways=size == asked.all_ways_at) as found:
                for turn in range(asked.times):
                    for way in found if turn % 2 == 0 else reversed(found):  # each goes up, and back in its turn
                        sample = measured(stage, way)
                        samples.append(sample)
                        out.print(f"{turn + 1} of {asked.times}, {size} MiB, {way.method}: {sample.felt * 1000:.1f} ms")
    told = series(samples)
    RESULT.write_text(json.dumps(document(told), indent=1))
    show(told, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

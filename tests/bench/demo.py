"""The main job, for real: three guests move from one QEMU to another and back while they work.

Run by `make demo` inside the bench. Everything that changes something is done by the `hostagent` command as a person
would type it; what is proved is asked of the guests themselves. Leaves build/demo.json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind
from hostagent.update.report import UpdateReport, report_of
from tests.bench.guest_spec import HOST_ADDRESS, GuestSpec, Ram
from tests.bench.host import RAM, Host
from tests.bench.lab import CONFIG, DEBS, Lab
from tests.bench.paths import BUILD
from tests.bench.peer import Felt, Peer
from tests.bench.proof import Proof, ProofReport

RESULT = BUILD / "demo.json"
HOSTAGENT = Path(sys.executable).with_name("hostagent")
IDLE_TICKS = 300
GUESTS = (
    GuestSpec(name="small", index=1, memory_mib=512, fill_mib=300, seed=11),
    GuestSpec(name="medium, on pc", index=2, memory_mib=1024, machine="pc", vcpus=2, fill_mib=800, seed=22),
    # As most guests are: its RAM is copied into a file on the way up, and kept there from then on.
    GuestSpec(name="large", index=3, memory_mib=2048, vcpus=2, ram=Ram.ANONYMOUS, fill_mib=1800, seed=33),
)

out = Console(width=None if sys.stdout.isatty() else 110, highlight=False)


@dataclass(frozen=True)
class Seen:
    """One guest around one update."""

    before: ProofReport
    after: ProofReport
    felt: Felt
    idle: Felt
    by_journal: tuple[float, float]  # for how long it stood still at least, and at most, seconds
    ram_before: frozenset[int]  # inodes of its RAM files
    ram_after: frozenset[int]

    @property
    def ram(self) -> str:
        """What became of its RAM, by its files alone."""
        if not self.ram_before and self.ram_after:
            return "copied"
        return "kept" if self.ram_after and self.ram_after == self.ram_before else "lost"

    def faults(self) -> list[str]:
        """What was not as it must be, in words; nothing when all was."""
        before, after = self.before, self.after
        checks = {
            "the guest's kernel booted anew": before.boot_id == after.boot_id,
            f"{after.ram.bad} of {after.ram.pages} pages are wrong": after.ram.good and after.ram.pages > 0,
            "the disk log has gaps, repeats or errors": after.disk.good and after.disk.last > before.disk.last,
            "the TCP connection broke": after.tcp.good
            and after.tcp.reconnects == 0
            and after.tcp.acked > before.tcp.acked,
            "the console stopped": after.console_lines > before.console_lines,
            "its RAM is in another file": self.ram != "lost",
        }
        return [words for words, good in checks.items() if not good]


def main() -> int:
    began = time.monotonic()
    with ExitStack() as stack:
        host = stack.enter_context(Host(ram="6g"))
        peer = stack.enter_context(Peer(HOST_ADDRESS))
        Lab.write_configuration(rehearse=True)
        hostagent("setup", "--yes")
        host.restart_libvirtd()  # as setup says
        hostagent("qemu", "add", *(str(deb) for deb in sorted(DEBS.glob("*.deb"))))
        hostagent("qemu", "list")
        say("Three guests boot: each fills its RAM, writes to its disk, and holds a TCP connection to the host.")
        for spec in GUESTS:
            stack.enter_context(host.guest(spec))
        for spec in GUESTS:
            _proof(host, spec).wait_booted()
        hostagent("inspect")
        hostagent("plan", "qemu", "--to", "10.0")
        results = [_update(host, peer, to) for to in ("10.0", "7.2")]
    RESULT.write_text(json.dumps({"machine": machine(), "updates": [result.json for result in results]}, indent=1))
    return _conclude(results, time.monotonic() - began)


@dataclass(frozen=True)
class Result:
    """One update: hostagent's report, and what the guests say of it."""

    report: UpdateReport
    seen: dict[str, Seen]
    exit_status: int

    @property
    def json(self) -> dict[str, object]:
        """The report as --json gives it, with what only the guests can tell filled in."""
        report = self.report.to_json()
        guests = report["guests"]
        assert isinstance(guests, list)
        for guest in guests:
            guest["felt_seconds"] = self.seen[guest["name"]].felt.stood_still_ns / 1e9
            guest["silence_seconds"] = self.seen[guest["name"]].felt.longest_ns / 1e9
        return report

    def faults(self) -> list[str]:
        """Everything that was not as promised."""
        found = [] if self.exit_status == 0 else [f"hostagent ended with status {self.exit_status}"]
        for guest in self.report.guests:
            seen = self.seen[guest.name]
            found += [f"{guest.name}: {fault}" for fault in seen.faults()]
            if guest.ram is None or guest.pause_seconds is None:
                found.append(f"{guest.name}: {guest.outcome}: {guest.reason or 'no pause measured'}")
                continue
            if guest.ram != seen.ram:
                found.append(f"{guest.name}: its RAM was {seen.ram}, and reported as {guest.ram}")
            if guest.clock_outcome == "uncorrected" and guest.clock_reason != "ahead":  # no clock is set back
                found.append(f"{guest.name}: its clock is not right ({guest.clock_reason})")
            allowed = 0.020 + seen.idle.p99_ns / 1e9  # two ticks, and what an idle guest's ticks are late by
            # QEMU says that it has stopped once all of it has, which a busy machine may delay, but not past the step.
            most = max(seen.by_journal[1], guest.halt_seconds or 0.0)
            if not guest.pause_seconds - allowed <= seen.felt.stood_still_ns / 1e9 <= most + allowed:
                found.append(f"{guest.name}: the guest felt another pause than was reported")
        return found


def _update(host: Host, peer: Peer, to: str) -> Result:
    before, idle, inodes = {}, {}, {}
    for spec in GUESTS:
        peer.reset(spec.address)
    for spec in GUESTS:
        peer.wait_for_ticks(spec.address, count=IDLE_TICKS)
    for spec in GUESTS:
        idle[spec.name] = peer.felt(spec.address)
        before[spec.name] = _proof(host, spec).report()
        inodes[spec.name] = _inodes(spec)
        peer.reset(spec.address)
    status = hostagent("update", "qemu", "--to", to, "--budget", "10s", "--yes")
    for spec in GUESTS:  # so that both sides of the gap are seen
        peer.wait_for_ticks(spec.address)
    felt = {spec.name: peer.felt(spec.address) for spec in GUESTS}
    say("Every page of each guest's RAM and every record of its disk log is read back inside the guest.")
    with ThreadPoolExecutor(len(GUESTS)) as pool:
        after = dict(zip(felt, pool.map(lambda spec: _proof(host, spec).check(), GUESTS), strict=True))
    lab = Lab.load()
    update = next(update for update in reversed(lab.updates()) if update.order.get("kind") == OrderKind.UPDATE)
    seen = {
        spec.name: Seen(
            before[spec.name],
            after[spec.name],
            felt[spec.name],
            idle[spec.name],
            lab.stood_still(update, spec.uuid) if update.outcome is Outcome.UPDATED else (0.0, 0.0),
            inodes[spec.name],
            _inodes(spec),
        )
        for spec in GUESTS
    }
    result = Result(report_of(update), seen, status)
    _show(result)
    return result


def _show(result: Result) -> None:
    table = Table(title="What the guests say")
    for column in ("guest", "RAM", "pages right", "disk records", "TCP", "console", "pause", "felt", "silence"):
        table.add_column(column, justify="left" if column == "guest" else "right")
    for guest in result.report.guests:
        seen = result.seen[guest.name]
        after = seen.after
        table.add_row(
            guest.name,
            seen.ram,
            f"{after.ram.pages - after.ram.bad:,} of {after.ram.pages:,}",
            f"{after.disk.last:,}, no gap" if after.disk.good else "damaged",
            "same" if after.tcp.reconnects == 0 else f"{after.tcp.reconnects} reconnects",
            f"{after.console_lines:,} lines",
            f"{(guest.pause_seconds or 0) * 1000:.1f} ms",
            f"{seen.felt.stood_still_ns / 1e6:.1f} ms",
            f"{seen.felt.longest_ns / 1e6:.0f} ms",
        )
    out.print(table)
    say(
        "Felt: the pause, as what the guest's clock lost. Silence: until its next tick reached the host; an emulated "
        "guest first has its code translated anew by the other QEMU, a guest under KVM has not.",
        dim=True,
    )


def _conclude(results: Sequence[Result], seconds: float) -> int:
    faults = [fault for result in results for fault in result.faults()]
    pauses = [guest.pause_seconds or 0.0 for result in results for guest in result.report.guests]
    pages = sum(seen.after.ram.pages for seen in results[-1].seen.values())
    kept = [(guest.pause_seconds or 0.0) for one in results for guest in one.report.guests if guest.ram == "kept"]
    out.print(f"[dim]{machine()}; {seconds:.0f} s; figures in {RESULT}[/dim]")
    if faults:
        for fault in faults:
            out.print(f"[red]{fault}[/red]", markup=True)
        say("Not proved: see above.")
        return 1
    say(
        f"Proved: {len(GUESTS)} running guests moved from QEMU 7.2 to 10.0 and back without losing a byte: all "
        f"{pages:,} pages of RAM are right, no disk record and no connection was lost. Guests whose RAM was kept where "
        f"it was stood still for at most {max(kept) * 1000:.0f} ms; the one whose ordinary RAM was copied into a file, "
        f"once, while it ran, for {max(set(pauses) - set(kept), default=0.0) * 1000:.0f} ms."
    )
    return 0


def hostagent(*words: str) -> int:
    """Type a command, as a person would; its output goes to the terminal."""
    shown = [word if " " not in word else repr(word) for word in words]
    shown = ["*.deb" if word.endswith(".deb") else word for word in shown]
    out.print(f"\n[bold green]# hostagent {' '.join(dict.fromkeys(shown))}[/bold green]")
    sys.stdout.flush()
    return subprocess.run([HOSTAGENT, "--config", CONFIG, *words], check=False).returncode


def say(words: str, *, dim: bool = False) -> None:
    """A sentence to whoever watches."""
    out.print(f"\n{words}" if not dim else words, style="dim" if dim else "bold", markup=False)


def machine() -> str:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    how = "KVM" if Path("/dev/kvm").exists() else "guests emulated (TCG)"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, {how}"


def _proof(host: Host, spec: GuestSpec) -> Proof:
    return Proof(host.connection.lookupByUUIDString(spec.uuid))


def _inodes(spec: GuestSpec) -> frozenset[int]:
    return frozenset(path.stat().st_ino for path in (RAM / "libvirt/qemu").glob(f"*-{spec.name[:20]}*/*"))


if __name__ == "__main__":
    sys.exit(main())

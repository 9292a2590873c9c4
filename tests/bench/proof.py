"""What a test guest says about itself, asked through its agent (vm-images/proof.c)."""

import base64
import json
import time
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu

_CRASHED = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]
AGENT_LIMIT = 60
"""Seconds for one answer of the agent."""
RUN_LIMIT = 180.0
"""Seconds for a program in the guest: one whose memory is damaged may never end it."""
BOOT_LIMIT = 300.0
"""Seconds after which a guest that boots is taken for one that never will."""
POLL = 0.05
"""Seconds between two looks."""


class NotBootedError(Exception):
    """The guest did not get to user space in time."""


class NotReadyError(Exception):
    """The agent answers, but proof does not yet."""


@dataclass(frozen=True)
class Ticks:
    """Gaps between ticks by the guest's clocks, in ns. These stand still in a pause: see peer.py for that."""

    count: int
    longest_ns: int
    longest_at_ns: int
    p99_ns: int
    wall_step_ns: int
    """The largest step of the wall clock against the monotonic one: how far somebody set it."""


@dataclass(frozen=True)
class RamProof:
    """checked is -1 until `proof check`; first_bad is -1 if no page is bad."""

    pages: int
    seed: int
    checked: int
    bad: int
    first_bad: int
    rewritten: int = 0
    """Writes to them since they were filled."""

    @property
    def good(self) -> bool:
        return self.checked == self.pages and self.bad == 0


@dataclass(frozen=True)
class DiskProof:
    """The numbered log: last is the highest number written."""

    present: bool
    last: int
    io_errors: int
    longest_write_ns: int
    checked: int
    damaged: int
    out_of_order: int

    @property
    def good(self) -> bool:
        complete = self.checked > 0 or not self.present
        return complete and self.damaged == self.out_of_order == self.io_errors == 0


@dataclass(frozen=True)
class TcpProof:
    """The one connection to the host; a second connect means that the first was lost."""

    present: bool
    connected: bool
    connects: int
    sent: int
    acked: int
    wrong: int
    longest_ns: int

    @property
    def reconnects(self) -> int:
        return max(0, self.connects - 1)

    @property
    def good(self) -> bool:
        return not self.present or (self.connected and self.connects == 1 and self.wrong == 0)


@dataclass(frozen=True)
class ProofReport:
    """One answer of `proof`, with the guest's clocks as it was given."""

    boot_id: str
    boottime_ns: int
    monotonic_ns: int
    wall_ns: int
    rtc_s: int
    tsc: int
    ticks: Ticks
    ram: RamProof
    disk: DiskProof
    tcp: TcpProof
    console_lines: int

    @property
    def good(self) -> bool:
        """Of a check: RAM, disk and connection are all as they should be."""
        return self.ram.good and self.disk.good and self.tcp.good

    @classmethod
    def from_json(cls, text: str) -> "ProofReport":
        answer: dict[str, Any] = json.loads(text)
        return cls(
            ticks=Ticks(**answer.pop("ticks")),
            ram=RamProof(**answer.pop("ram")),
            disk=DiskProof(**answer.pop("disk")),
            tcp=TcpProof(**answer.pop("tcp")),
            **answer,
        )


class Proof:
    """Asks one guest; takes a new domain object after libvirtd was restarted."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain

    def report(self) -> ProofReport:
        return ProofReport.from_json(self._run("report"))

    def check(self) -> ProofReport:
        """Has every page and every record read back: seconds for a large guest."""
        return ProofReport.from_json(self._run("check"))

    def fill(self, mib: int, seed: int) -> ProofReport:
        return ProofReport.from_json(self._run("fill", str(mib), str(seed)))

    def rewrite(self, mib_per_second: int) -> ProofReport:
        """From now on the guest writes to that much of its RAM a second; 0 ends it."""
        return ProofReport.from_json(self._run("rewrite", str(mib_per_second)))

    def reset_ticks(self) -> None:
        self._run("reset-ticks")

    def wait_booted(self, limit: float = BOOT_LIMIT, *, connected: bool = True, first: bool = True) -> ProofReport:
        """The first report of a guest that is starting; limit in seconds.

        connected: wait also for the connection of a guest with a network card to its peer. first: nothing was done to
        it yet, so one whose QEMU crashes as it boots is started once more. QEMU 7.2 emulating two processors was seen
        to ("CPU 1/TCG: segfault"), once in some hundred boots.
        """
        deadline = time.monotonic() + limit
        while True:
            if first and self._domain.isPersistent() and self._domain.state() == _CRASHED:
                print(f"{self._domain.name()}: its QEMU crashed as it booted; started once more", flush=True)
                self._domain.create()
                first, deadline = False, time.monotonic() + limit
            try:
                report = self.report()
                if not connected or report.tcp.connected or not report.tcp.present:
                    return report
                missing = "expected a connection to the peer, found none (hint: is a Peer open?)"
            except (libvirt.libvirtError, NotReadyError) as error:
                missing = str(error)
            if time.monotonic() > deadline:
                raise NotBootedError(f"{self._domain.name()}: after {limit:.0f} s: {missing}")
            time.sleep(POLL)

    def _run(self, *words: str) -> str:
        return self.run_in_guest("/bin/proof", *words)

    def run_in_guest(self, path: str, *words: str) -> str:
        """What a program in the guest wrote; NotReadyError when it failed, or did not end."""
        arguments = {"path": path, "arg": list(words), "capture-output": True}
        pid, ends = self._ask("guest-exec", arguments)["pid"], time.monotonic() + RUN_LIMIT
        while not (status := self._ask("guest-exec-status", {"pid": pid}))["exited"]:
            if time.monotonic() > ends:
                raise NotReadyError(f"expected {path} {' '.join(words)} to end within {RUN_LIMIT:.0f} s")
            time.sleep(POLL)
        if status.get("exitcode") != 0:
            said = base64.b64decode(status.get("err-data", "")).decode()
            raise NotReadyError(f"expected {path} to answer, found {said.strip() or status}")
        return base64.b64decode(status.get("out-data", "")).decode()

    def _ask(self, command: str, arguments: dict[str, object]) -> dict[str, Any]:
        """One command to the agent; waits for an agent that libvirt has only just connected to again."""
        asked = json.dumps({"execute": command, "arguments": arguments})
        deadline = time.monotonic() + AGENT_LIMIT
        while True:
            try:
                answer = libvirt_qemu.qemuAgentCommand(self._domain, asked, AGENT_LIMIT, 0)
            except libvirt.libvirtError as error:
                away = error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
                if not away or time.monotonic() > deadline:
                    raise
                time.sleep(POLL)
                continue
            result: dict[str, Any] = json.loads(answer)["return"]
            return result

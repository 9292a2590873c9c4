"""A host with guests that are updated in every way there is, while Prometheus looks on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hostagent import boot, wiring
from hostagent.libvirt_files.hook import HOOK
from hostagent.policy import Allowed, PolicyPart
from hostagent.update.journal import Outcome
from hostagent.update.report import UpdateReport, report_of
from tests.bench.guest_spec import HOST_ADDRESS, LISTENS_AT, GuestSpec, Ram
from tests.bench.host import Host
from tests.bench.lab import CONFIG, Lab
from tests.bench.peer import Felt, Peer
from tests.bench.proof import Proof
from tests.grafana.prometheus import LIMIT, Prometheus

HOSTAGENT = Path(sys.executable).with_name("hostagent")
AGENT = "127.0.0.1:9177"
INSTANCE = "host1"
BUDGET_SECONDS = 60.0
BOOT_SECONDS = 300.0
KEPT = GuestSpec("web1", 1, 256, fill_mib=16, seed=1)
COPIED = GuestSpec("mail", 2, 256, ram=Ram.ANONYMOUS, fill_mib=16, seed=2, pace=8)
HELD = GuestSpec("desk", 3, 256, screen="qxl", display="spice", pace=8)
REBOOTED = GuestSpec("legacy", 4, 256, agent=False, pace=8)
"""Nobody can set its clock."""
GUESTS = (KEPT, COPIED, HELD, REBOOTED)
MORE = (
    GuestSpec("db1", 5, 512, vcpus=2, fill_mib=64, seed=5, pace=8),
    GuestSpec("db2", 6, 512, "pc", fill_mib=64, seed=6, pace=8),
    GuestSpec("web2", 7, 256, "pc", pace=8),
)


@dataclass
class Scene:
    """The host, its guests, and who looks on."""

    host: Host
    lab: Lab
    peer: Peer
    prometheus: Prometheus
    guests: Sequence[GuestSpec]
    begun: float
    felt: Felt | None = None  # by the guest whose RAM is kept, of its last update
    by_journal: tuple[float, float] = (0.0, 0.0)  # for how long it stood still in that, at least and at most
    ended: float = 0.0

    def update(self, to: str, *words: str) -> None:
        """As somebody types it."""
        self.peer.reset(KEPT.address)
        self.peer.wait_for_ticks(KEPT.address)  # on either side of the pause
        command = ("update", "qemu", "--to", to, "--budget", f"{BUDGET_SECONDS:g}s", "--yes", *words)
        subprocess.run([HOSTAGENT, "--config", CONFIG, *command], check=False, stdin=subprocess.DEVNULL)
        self.peer.wait_for_ticks(KEPT.address)
        self.felt = self.peer.felt(KEPT.address)
        self.by_journal = self.lab.stood_still(self.lab.updates()[-1], KEPT.uuid)
        self.ended = self.prometheus.wait_for_scrape()

    def update_in_vain(self) -> None:
        """One to a QEMU that does not start; its guest runs on."""
        broken = replace(self.lab.system, name="broken", emulator="/bin/false")
        record = self.lab.update(broken, [KEPT.name], budget_seconds=BUDGET_SECONDS)
        assert record.outcome is Outcome.ROLLED_BACK
        self.ended = self.prometheus.wait_for_scrape()

    def reports(self) -> list[UpdateReport]:
        """What the journal says."""
        return [report_of(update) for update in self.lab.updates()]


@contextmanager
def scene(guests: Sequence[GuestSpec] = GUESTS) -> Iterator[Scene]:
    """All of it, before the first update."""
    with ExitStack() as stack:
        host = stack.enter_context(Host(ram="8g"))
        peer = stack.enter_context(Peer(HOST_ADDRESS))
        lab = Lab.set_up(rehearse=False)
        lab.install_hook()
        stack.callback(shutil.rmtree, HOOK.parent)
        host.restart_libvirtd()
        for spec in guests:
            stack.enter_context(host.guest(spec))
        for spec in guests:
            if spec.agent:
                Proof(host.connection.lookupByUUIDString(spec.uuid)).wait_booted(BOOT_SECONDS)
            else:
                assert boot.answers(spec.address, LISTENS_AT, BOOT_SECONDS)
        only_to_be_rebooted(lab, REBOOTED)
        stack.enter_context(agent_of(lab))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prometheus = stack.enter_context(Prometheus(folder, {INSTANCE: AGENT}))
        prometheus.wait_until("hostagent_guests")
        yield Scene(host, lab, peer, prometheus, guests, begun=time.time())


def only_to_be_rebooted(lab: Lab, spec: GuestSpec) -> None:
    """By its owner's wish."""
    libvirt = wiring.libvirt_of(lab.config)
    try:
        libvirt.put_policy(spec.uuid, PolicyPart(allow=frozenset((Allowed.REBOOT,)), boot_tcp=spec.tcp))
    finally:
        libvirt.disconnect()


@contextmanager
def agent_of(lab: Lab) -> Iterator[None]:
    """The service, as systemd would run it; the command line goes through it."""
    drop_in = CONFIG.with_name(f"{CONFIG.name}.d") / "50-agent.toml"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f'[agent]\nlisten = "{AGENT}"\nlook_seconds = 1\n')
    process = subprocess.Popen([HOSTAGENT, "--config", CONFIG, "agent"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(LIMIT)
        shutil.rmtree(drop_in.parent)

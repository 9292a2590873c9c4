"""A fake host: guests under a faithful small libvirt and QEMU, in a directory (fake_world.py).

    host = FakeHost.create(directory, trees, capability_caches)
    uuid = host.boot(shape, "web1")
    host.qemu, host.libvirt, host.daemon, host.clock    the ports
    host.fault(FaultKind.LOAD_EXITS_LATE, uuid)         what shall go wrong
    host.violations()                                   promises that were broken; must stay empty

What others do to it (an operator, a crash of the daemon) are methods here.
"""

from __future__ import annotations

import json
import re
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from hostagent.errors import Failed
from hostagent.facts import QemuTree
from hostagent.hypervisor import RunState
from hostagent.hypervisor import fake_physics as physics
from hostagent.hypervisor.fake_boots import boots_anew
from hostagent.hypervisor.fake_daemon import FakeDaemon, comes_back, leaves
from hostagent.hypervisor.fake_libvirt import FakeLibvirt
from hostagent.hypervisor.fake_monitor import WALL_SECONDS
from hostagent.hypervisor.fake_qemu import FakeQemu
from hostagent.hypervisor.fake_saves import PIDS, TAP, filled, process_of
from hostagent.hypervisor.fake_world import (
    Fault,
    FaultKind,
    GuestLife,
    Process,
    State,
    View,
    World,
    create,
)
from hostagent.libvirt_files.capability_cache import cache_file_name

__all__ = ["FakeClock", "FakeHost", "FaultKind", "GuestShape"]


@dataclass(frozen=True)
class GuestShape:
    """What a guest is made of: a real one's record, argument list and live XML, with its own words marked.

    Marks: @NAME@ @UUID@ @ID@ (libvirt's number) @PID@ @ROOT@ (the world's directory), and @VCPUn@ for thread ids.
    """

    record: str
    argv: tuple[str, ...]
    live_xml: str
    vcpus: int


@dataclass(frozen=True)
class FakeClock:
    """The world's clock; nobody waits for it."""

    world: World

    def wall_ns(self) -> int:
        return round(WALL_SECONDS * 1e9) + self.monotonic_ns()

    def monotonic_ns(self) -> int:
        with self.world.look() as state:
            return state.now_ns

    def synchronised(self) -> bool:
        return True

    def wall(self) -> float:
        """Unix time in seconds."""
        return self.wall_ns() / 1e9


@dataclass(frozen=True)
class FakeHost:
    """The whole host."""

    world: World
    trees: tuple[QemuTree, ...]
    throw_away: GuestShape | None = None  # what a guest started from XML is made of

    @classmethod
    def create(
        cls,
        root: Path,
        trees: tuple[QemuTree, ...],
        caches: Mapping[str, bytes],
        throw_away: GuestShape | None = None,
    ) -> FakeHost:
        """A host with libvirt up and no guests; `caches` are libvirt's capability caches by emulator."""
        world = create(root, physics.time_passes, physics.look_for_violations)
        for emulator, data in caches.items():
            (root / "cache" / "capabilities" / cache_file_name(emulator)).write_bytes(data)
        host = cls(world, trees, throw_away)
        host.daemon.start(0.0)
        return host

    @property
    def qemu(self) -> FakeQemu:
        """The QEMU processes."""
        return FakeQemu(self.world)

    @property
    def daemon(self) -> FakeDaemon:
        """libvirt's daemon."""
        return FakeDaemon(self.world)

    @property
    def libvirt(self) -> FakeLibvirt:
        """libvirt's API."""
        return FakeLibvirt(self.world, self.trees, self._boot_from_xml)

    @property
    def clock(self) -> FakeClock:
        """The host's clock."""
        return FakeClock(self.world)

    # -- guests -----------------------------------------------------------------------------------------------------

    def boot(self, shape: GuestShape, name: str, *, uuid: str = "", transient: bool = False, domain_id: int = 0) -> str:
        """Start a guest through libvirt, which must be up; returns its uuid. libvirt's number for it may be given."""
        uuid = uuid or str(uuids.uuid5(uuids.NAMESPACE_URL, name))
        with self.world.change() as state:
            pid = state.next_pid
            state.next_pid += PIDS
            domain_id = domain_id or len(state.guests) + 1
            words = {"NAME": name, "UUID": uuid, "ID": str(domain_id), "PID": str(pid)}
            words |= {f"VCPU{n}": str(pid + 1 + n) for n in range(shape.vcpus)}
            words["ROOT"] = str(self.world.root)
            argv = tuple(filled(word, words) for word in shape.argv)
            xml = self.world.keep_text(filled(shape.live_xml, words))
            made_of = self.world.keep_text(json.dumps(vars(shape)))
            guest = GuestLife(uuid, name, domain_id, not transient, xml, physics.make_ram(argv), shape=made_of)
            state.guests[uuid] = guest
            record = filled(shape.record, words)
            process = process_of(self.world, state, guest, argv=argv, record=record, pid=pid)
            process.ram = [[device, inode] for _, device, inode, _ in guest.ram]
            process.holds = guest.life
            process.throttles, process.polling = dict(physics.THROTTLES), dict(physics.POLLING)
            state.taps |= dict.fromkeys(process.taps.values(), physics.RIGHT_TAP)
            (self.world.libvirt_run / f"{name}.xml").write_text(record)
            (self.world.libvirt_run / f"{name}.pid").write_text(f"{pid}\n")
            state.daemon.views[uuid] = View(pid, pid, "running", "booted", argv[0])
            physics.begins_to_run(state, process)
        return uuid

    def _boot_from_xml(self, xml: str) -> str:
        assert self.throw_away is not None  # noqa: S101 - whoever rehearses says what with
        root = ElementTree.fromstring(xml)  # noqa: S314 - our own
        name, uuid = root.findtext("name", ""), root.findtext("uuid", "")
        return self.boot(self.throw_away, name, uuid=uuid, transient=True)

    # -- what others do -----------------------------------------------------------------------------------------------

    def fault(self, kind: FaultKind, guest: str = "", times: int = 1) -> None:
        """That shall happen, at the next occasion, so often (-1: always)."""
        with self.world.change() as state:
            state.faults.append(Fault(kind, guest, times))

    def no_more_faults(self) -> None:
        """What went wrong until now has been mended."""
        with self.world.change() as state:
            state.faults.clear()
            for guest in state.guests.values():
                guest.silent = False

    def kill(self, pid: int, *, slowly: bool = False) -> None:
        """Somebody, or the kernel, ends a QEMU; slowly: it is seen until somebody waits for its end."""
        with self.world.change() as state:
            process = state.processes.get(pid)
            if process is not None:
                process.leaving = slowly and process.alive
                physics.dies(self.world, state, process, tidily=False)

    def destroy(self, uuid: str) -> None:
        """The operator ends a guest: through libvirt where that is up, else whatever runs it."""
        with self.world.change() as state:
            up, runs = state.daemon.up, [one.pid for one in state.living(uuid) if one.holds >= 0]
            if up and uuid in state.daemon.views:
                _free_view(state, uuid)
            state.guests[uuid].ended = state.guests[uuid].off = "destroyed"
        if up:
            self.libvirt.destroy(uuid)
        else:
            for pid in runs:
                self.kill(pid)

    def pause(self, uuid: str) -> None:
        """The owner pauses the guest, through libvirt."""
        with self.world.change() as state:
            view = _free_view(state, uuid)
            physics.stands_still(state, state.processes[view.monitor_pid], RunState.PAUSED)
            view.state, view.reason = "paused", "user"
            record = self.world.libvirt_run / f"{state.guests[uuid].name}.xml"
            text = record.read_text()
            record.write_text(re.sub(r"state='\w+' reason='\w+'", "state='paused' reason='user'", text, count=1))

    def resume(self, uuid: str) -> None:
        """The owner, or an operator who sees it paused, resumes the guest through libvirt."""
        with self.world.change() as state:
            view = _free_view(state, uuid)
            physics.go_on(self.world, state, state.processes[view.monitor_pid])
            view.state, view.reason = "running", "unpaused"

    def start(self, uuid: str) -> None:
        """Somebody boots a guest that is shut off: from its disks, with fresh RAM, if the hook lets him."""
        with self.world.change() as state:
            boots_anew(self.world, state, state.guests[uuid], None)

    def shut_down(self, uuid: str) -> None:
        """The owner shuts the guest down, from inside."""
        with self.world.change() as state:
            for process in state.living(uuid):
                process.ends_at_ns = state.now_ns

    def managed_save(self, uuid: str) -> None:
        """The owner has libvirt keep the guest's state, from which its next start goes on."""
        with self.world.change() as state:
            guest = state.guests[uuid]
            physics.dies(self.world, state, state.processes[state.daemon.views[uuid].monitor_pid], tidily=True)
            guest.managed_save, guest.ended, guest.off = True, "saved", "saved"

    def take_link_down(self, uuid: str) -> None:
        """The owner cuts the guest off its network: `virsh domif-setlink`."""
        with self.world.change() as state:
            state.processes[state.daemon.views[uuid].monitor_pid].links_down = ["net0"]
            self._rewrite(state.guests[uuid], "<alias name='net0'/>", "<link state='down'/><alias name='net0'/>")

    def end_at_reboot(self, uuid: str) -> None:
        """The owner wants a reboot to end the guest: `virsh set-lifecycle-action`."""
        with self.world.change() as state:
            state.processes[state.daemon.views[uuid].monitor_pid].reboot = "shutdown"
            self._rewrite(state.guests[uuid], "<on_reboot>restart<", "<on_reboot>destroy<")

    def unplug_card(self, uuid: str) -> None:
        """The owner takes the network card out: `virsh detach-interface`."""
        with self.world.change() as state:
            guest, process = state.guests[uuid], state.processes[state.daemon.views[uuid].monitor_pid]
            process.taps.clear()
            argv = self.world.argv(process)
            at = argv.index("-netdev")
            process.argv = self.world.keep_text(json.dumps((*argv[:at], *argv[at + 4 :])))
            for text in (self.world.text(guest.xml), (self.world.libvirt_run / f"{guest.name}.xml").read_text()):
                for found in re.findall(r"(?s) *<interface.*?</interface>\n", text):
                    self._rewrite(guest, found, "")

    def change_card(self, uuid: str) -> None:
        """The owner takes the network card out and puts the same one in again: it has another tap then."""
        with self.world.change() as state:
            guest, process = state.guests[uuid], state.processes[state.daemon.views[uuid].monitor_pid]
            process.taps = {TAP + 9: "vnet9"}
            state.taps["vnet9"] = physics.RIGHT_TAP
            self._rewrite(guest, f"<target dev='vnet{guest.domain_id - 1}'/>", "<target dev='vnet9'/>")
            self._rewrite(guest, "<target dev='vnet0'/>", "<target dev='vnet9'/>")

    def _rewrite(self, guest: GuestLife, old: str, new: str) -> None:
        """The live XML changes, and with it libvirt's record."""
        guest.xml = self.world.keep_text(self.world.text(guest.xml).replace(old, new))
        record = self.world.libvirt_run / f"{guest.name}.xml"
        record.write_text(record.read_text().replace(old, new))

    def somebody_starts_daemon(self) -> None:
        """By hand, by a socket, by a package's script: it stays away while the driver's lock is held."""
        with self.world.change() as state:
            if not state.daemon.up:
                comes_back(self.world, state)

    def daemon_crashes(self) -> None:
        """It is killed."""
        with self.world.change() as state:
            leaves(self.world, state)

    # -- looking at it ------------------------------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """Promises that were broken."""
        with self.world.change() as state:
            return list(state.violations)

    def processes(self, uuid: str) -> list[Process]:
        """The living processes of a guest, copied."""
        with self.world.look() as state:
            return [Process(**vars(one)) for one in state.living(uuid)]


def _free_view(state: State, uuid: str) -> View:
    """libvirt has everybody else wait while it ends a save, and finds the guest gone then."""
    view = state.daemon.views[uuid]
    if view.marks_next:
        raise Failed("asking for a guest that is being saved", found="domain is not running")
    return view

"""The fake's `MigratingHost`: this host's libvirt, or a peer's, in the same world."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hostagent.clock import GuestAgent
from hostagent.errors import Failed, OutcomeUnknown, Refused
from hostagent.facts import Guest, GuestState, Peer, QemuTree, Version
from hostagent.hypervisor import RunState
from hostagent.hypervisor.fake_daemon import emulator_in
from hostagent.hypervisor.fake_disks import copying_begins
from hostagent.hypervisor.fake_libvirt import FakeAgent
from hostagent.hypervisor.fake_passing import HOME, LOOKS, begins, ends, goes_on, is_up
from hostagent.hypervisor.fake_physics import dies, go_on, libvirt_cleans_up
from hostagent.hypervisor.fake_storage import DISK_BYTES, SILENT_SECONDS, FakeStorage, unheard
from hostagent.hypervisor.fake_world import FaultKind, Passing, PeerView, State, View, World
from hostagent.hypervisor.migration_verbs import (
    MAY_NEVER_HAVE_RUN,
    Migratable,
    MigrationLook,
    MigrationOrder,
    Passage,
    There,
)

RAM_BYTES = 64 << 20
SCHEME = "fake://"


@dataclass(frozen=True)
class FakeMigratingHost(FakeStorage):
    """One host's libvirt; `name` is a peer's, "" means this one."""

    qemu: QemuTree  # what guests that migrate to a peer find there

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.name or 'home'}/system"

    def uuid(self) -> str:
        return f"host-{self.name}"

    def processor(self) -> str:
        return "<cpu><model>fake</model></cpu>"

    def look(self, name: str, guests: Collection[Guest], definitions: Mapping[str, str], processor: str) -> Peer:
        with self._asked("asking what it has") as state:
            wanted = {(guest.definition.virtualisation, guest.definition.machine) for guest in guests}
            known = state.peers[self.name].views if self.name else {}
            return Peer(
                name=name,
                uri=self.uri,
                libvirt=Version(9, 0),
                qemu=self.qemu.version,
                emulator=self.qemu.emulator,
                machines=frozenset(wanted),
                memory_left=1 << 40,
                guests=frozenset((state.guests[uuid].name, uuid) for uuid in known),
            )

    # -- a guest ---------------------------------------------------------------------------------------------

    def there(self, uuid: str) -> There | None:
        with self._asked("looking at it") as state:
            goes_on(self.world, state, uuid)
            return self._there(state, uuid)

    def _there(self, state: State, uuid: str) -> There | None:
        guest, view = state.guests[uuid], self._view(state, uuid)
        known = uuid in state.peers[self.name].defined if self.name else guest.persistent
        if view is None:
            off = There(GuestState.SHUT_OFF, "" if self.name else guest.off, True, guest.autostart, "", job=False)
            return off if known else None
        autostart = view.autostart if isinstance(view, PeerView) else guest.autostart
        passing = state.passing.get(uuid)
        crosses = passing is not None and not passing.done and self.name in (passing.source, passing.target)
        return There(_state(view), view.reason, known, autostart, view.emulator, job=crosses)

    def state(self, uuid: str) -> GuestState | None:
        found = self.there(uuid)
        return found.state if found else None

    def migratable(self, uuid: str) -> Migratable:
        with self._asked("reading its definition") as state:
            view = self._view(state, uuid)
            if view is None:
                raise Failed("reading its definition", expected=f"guest {uuid}", found="none")
            xml = emulator_in(self.world.text(state.guests[uuid].xml), view.emulator)
            return Migratable(xml, xml)

    @contextmanager
    def migrate(self, uuid: str, order: MigrationOrder) -> Iterator[Passage]:
        target = order.uri.removeprefix(SCHEME).removesuffix("/system")
        emulator = re.search(r"<emulator>(.*?)</emulator>", order.there.live_xml)
        assert emulator is not None  # noqa: S101 - it came out of here
        refused = ""
        with self._asked("migrating it") as state:
            target = HOME if target == "home" else target
            if self._view(state, uuid) is None:
                refused = "no such guest"
            elif not is_up(state, target):
                refused = "unable to connect to server: No route to host"
            elif state.take(FaultKind.MIGRATE_REFUSED, uuid):
                refused = "Cannot get interface MTU on 'br0': No such device"
            elif not (refused := copying_begins(state, uuid, target, copies=bool(order.disks))):
                looks = LOOKS if order.disks else 0
                begins(self.world, state, uuid, Passing(self.name, target, emulator[1], LOOKS, disks_left=looks))
        yield FakePassage(self.world, uuid, refused)

    def migration(self, uuid: str) -> MigrationLook | None:
        with self._asked("asking how far it is") as state:
            passing = state.passing.get(uuid)
            if passing is None or passing.done or passing.source != self.name:
                return None
            if passing.disks_left:
                left = passing.disks_left * DISK_BYTES // LOOKS
                return MigrationLook(0, 0, 0, 0, 0, disks_left=left, disks_total=DISK_BYTES)
            return MigrationLook(
                left=passing.left * RAM_BYTES // 3, total=RAM_BYTES, sent=0, speed=100 << 20, dirtying=900 << 20
            )

    def limit_downtime(self, uuid: str, seconds: float) -> None:
        with self._asked("limiting its pause"):
            pass

    def abort_job(self, uuid: str, within_seconds: float) -> None:
        with self._asked("breaking its job off") as state:
            passing = state.passing.get(uuid)
            if passing is not None and not passing.done and passing.hangs:
                raise Failed("breaking its job off", expected="it to end", found="it still goes on")
            if passing is not None and not passing.done and passing.source == self.name and passing.left:
                ends(self.world, state, uuid, "operation aborted: migration out job: canceled by client")
            elif passing is not None:
                while not passing.done:
                    goes_on(self.world, state, uuid)

    def usable(self, within_seconds: float) -> bool:
        left = within_seconds
        while left > 0:
            try:
                with self._asked("asking libvirt whether it answers"):
                    return True
            except OutcomeUnknown:
                left -= SILENT_SECONDS
            except Refused:
                return False
        return False

    def resume(self, uuid: str) -> None:
        doing = "resuming a guest"
        with self._asked(doing) as state:
            view = self._view(state, uuid)
            if view is None:
                raise Failed(doing, expected=f"guest {uuid}", found="none")
            if view.state == "running":
                return
            if state.take(FaultKind.CONT_FAILS, uuid):
                raise Failed(doing, found="Input/output error")
            if state.take(FaultKind.CONT_LOST, uuid):
                raise unheard(state, doing)
            go_on(self.world, state, state.processes[view.pid])
            view.state, view.reason = "running", "unpaused"
            if not state.processes[view.pid].alive:
                self._forget(state, uuid)
                raise Failed(doing, found="the monitor was closed")
            if state.take(FaultKind.CONT_UNHEARD, uuid):
                raise unheard(state, doing)

    def remove(self, uuid: str) -> None:
        with self._asked("ending a copy that never ran") as state:
            view = self._view(state, uuid)
            if view is None:
                if self.name and uuid in state.peers[self.name].defined:
                    state.peers[self.name].defined.remove(uuid)
                return
            process = state.processes[view.pid]
            if process.state is RunState.RUNNING:
                raise Failed("ending a copy that never ran", expected="it standing still", found="running")
            if view.reason not in MAY_NEVER_HAVE_RUN:
                raise Failed("ending a copy that never ran", expected="it standing still", found=view.reason)
            if not [one for one in state.living(uuid) if one.holds == state.guests[uuid].life and one is not process]:
                state.violated(f"the last that there was of {state.guests[uuid].name} was removed")
            process.client = ""
            dies(self.world, state, process, tidily=True)
            self._forget(state, uuid)
            if self.name:
                state.peers[self.name].defined = [one for one in state.peers[self.name].defined if one != uuid]
            else:
                state.guests[uuid].persistent = False

    def put_autostart(self, uuid: str, *, on: bool) -> None:
        with self._asked("setting whether it starts with its host") as state:
            view = self._view(state, uuid)
            if view is None:
                raise Failed("setting whether it starts with its host", expected=f"guest {uuid}", found="none")
            if isinstance(view, PeerView):
                view.autostart = on
            else:
                state.guests[uuid].autostart = on

    @contextmanager
    def agent(self, uuid: str) -> Iterator[GuestAgent]:
        yield FakeAgent(self.world, uuid, self.name)

    def disconnect(self) -> None:
        pass

    def _view(self, state: State, uuid: str) -> View | PeerView | None:
        return state.peers[self.name].views.get(uuid) if self.name else state.daemon.views.get(uuid)

    def _forget(self, state: State, uuid: str) -> None:
        if self.name:
            state.peers[self.name].views.pop(uuid, None)
        elif uuid in state.daemon.views:
            libvirt_cleans_up(self.world, state, uuid, "")


@dataclass(frozen=True)
class FakePassage:
    """A migration that somebody waits for."""

    world: World
    uuid: str
    refused: str

    def wait(self, seconds: float) -> bool:
        with self.world.change() as state:
            if self.refused:
                return True
            goes_on(self.world, state, self.uuid)
            passing = state.passing[self.uuid]
            if passing.done and passing.answered:
                return True
            state.now_ns += round(seconds * 1e9)
            return False

    def result(self) -> None:
        if self.refused:
            raise Failed("migrating", found=self.refused)
        with self.world.look() as state:
            passing = state.passing[self.uuid]
            if not passing.done or not passing.answered:
                raise OutcomeUnknown("migrating", expected="an answer from libvirt", found="none yet")
            if passing.error:
                raise Failed("migrating", found=passing.error)


def _state(view: View | PeerView) -> GuestState:
    if view.state == "running":
        return GuestState.RUNNING
    return GuestState.PAUSED_BY_OWNER if view.reason == "user" else GuestState.PAUSED_OTHERWISE

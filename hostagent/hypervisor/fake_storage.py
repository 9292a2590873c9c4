"""The fake's disks that are each host's own, and how they are copied (qemuMigrationDstPrecreateStorage of libvirt 9.0).

Of a file is kept which moment of its guest's writing it holds: a guest may only go on from the last one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostagent.errors import Failed, OutcomeUnknown, Refused
from hostagent.facts import Place
from hostagent.hypervisor.fake_disks import owner_of
from hostagent.hypervisor.fake_world import FakeFile, FaultKind, State, World
from hostagent.hypervisor.migration_verbs import Image

DISK_BYTES = 64 << 20
ROOM_BYTES = 1 << 40
OURS = "hostagent"
SILENT_SECONDS = 10.0  # what a call takes that is not answered


@dataclass(frozen=True)
class FakeStorage:
    """One host's files; `name` is a peer's, "" means this host."""

    world: World
    name: str

    def sees(self, path: Path) -> bool:
        with self._asked("looking for a file") as state:
            return path.exists() and not state.take(FaultKind.NOT_SHARED)

    def places(self, paths: Collection[Path]) -> tuple[Place, ...]:
        with self._asked("looking for places") as state:
            return tuple(self._place(state, path) for path in paths)

    def _place(self, state: State, path: Path) -> Place:
        if state.take(FaultKind.NO_PLACE) or not path.parent.is_dir():
            return Place(str(path), fault=f"cannot open directory '{path.parent}': No such file or directory")
        there = state.files.get(self._key(path))
        return Place(str(path), ROOM_BYTES, f"{there.format} of {there.size >> 20} MiB" if there else "")

    def disk_size(self, uuid: str, target: str) -> int:
        with self._asked("asking for the size of a disk"):
            return DISK_BYTES

    def cut_copies(self, uuid: str) -> None:
        with self._asked("cutting the copies of its disks off") as state:
            if uuid in state.passing:
                state.passing[uuid].hangs = False

    def image(self, path: Path) -> Image | None:
        with self._asked(f"looking at {path}") as state:
            there = state.files.get(self._key(path))
            return Image(path, there.format, there.size) if there else None

    def make_image(self, image: Image) -> None:
        doing = f"making {image.path}"
        with self._asked(doing) as state:
            if self._key(image.path) in state.files:
                raise Failed(doing, found=f"storage volume '{image.path.name}' exists already")
            if state.take(FaultKind.PLACE_FAILS):
                raise Failed(doing, found="No space left on device")
            state.files[self._key(image.path)] = FakeFile(image.format, image.size, -1, OURS)
            if state.take(FaultKind.PLACE_UNHEARD):
                raise unheard(state, doing)

    def remove_image(self, path: Path) -> None:
        with self._asked(f"removing {path}") as state:
            there = state.files.pop(self._key(path), None)
            if there is None:
                return
            if there.by != OURS:
                state.violated(f"{path} on {self.name or 'this host'} was removed, which is somebody's")
            guest = owner_of(state, str(path))
            if guest is None:
                return
            if any(one.host == self.name for one in state.living(guest.uuid)):
                state.violated(f"{path} on {self.name or 'this host'} was removed while {guest.name} has it")
            if there.holds == guest.wrote and not any(one.holds == guest.wrote for one in state.files.values()):
                state.violated(f"the last disk of {guest.name} was removed")

    def _key(self, path: Path) -> str:
        return f"{self.name}:{path}"

    @contextmanager
    def _asked(self, doing: str) -> Iterator[State]:
        with self.world.change() as state:
            if self.name and state.take(FaultKind.PEER_SILENT):
                raise unheard(state, doing)
            if not (state.peers[self.name].alive if self.name else state.daemon.up):
                raise Refused(doing, expected="libvirt to answer", found="No route to host")
            yield state


def unheard(state: State, doing: str) -> OutcomeUnknown:
    """What whoever asks gets, after a while."""
    state.now_ns += round(SILENT_SECONDS * 1e9)
    return OutcomeUnknown(doing, expected="an answer from libvirt", found="none")

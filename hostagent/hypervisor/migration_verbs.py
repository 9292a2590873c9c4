"""What a migration asks of the libvirt of either host, in hostagent's own verbs.

The real one (`migrating.py`, `storage.py`) and the fake (`fake_migrating.py`, `fake_storage.py`) pass the same contract
tests. Seconds everywhere; a call that gets no answer in its time raises OutcomeUnknown, and the caller asks the world.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from hostagent.clock import GuestAgent
from hostagent.facts import Guest, GuestState, Peer, Place

MAY_NEVER_HAVE_RUN = ("user", "migration", "starting up")
"""Why a copy stands still that a migration has made; any other reason is only given for what has run."""


@dataclass(frozen=True)
class There:
    """What the libvirt of one of two hosts says of a guest that is to migrate between them."""

    state: GuestState
    reason: str
    persistent: bool
    autostart: bool
    emulator: str  # "" while a job goes on
    job: bool  # a migration, a save or the like goes on

    @property
    def comes_in(self) -> bool:
        """Whether it is what a migration has yet to fill; libvirt ends it itself when that breaks off."""
        return self.state is GuestState.PAUSED_OTHERWISE and self.reason in ("migration", "starting up")

    @property
    def has_arrived(self) -> bool:
        """Whether it is the whole guest, and stands still as was asked for."""
        return self.state is GuestState.PAUSED_BY_OWNER


@dataclass(frozen=True)
class Migratable:
    """A guest's definitions, as another host is given them."""

    live_xml: str
    persistent_xml: str


class Crossing(StrEnum):
    """How a guest's memory crosses to another host."""

    ENCRYPTED = "by QEMU, encrypted"
    TUNNELLED = "inside the connection of the two libvirts"
    PLAIN = "by QEMU, as it is"


@dataclass(frozen=True)
class MigrationOrder:
    """How a guest is to migrate. It stands still when it has arrived, and is known where it came from no more."""

    uri: str  # of the libvirt that it goes to, as the one that it leaves reaches it
    migrate_uri: str  # where QEMU sends to; "": libvirt knows
    crossing: Crossing
    there: Migratable  # what it is to be there: the same but for the emulator
    auto_converge: bool
    trusts_storage: bool  # libvirt need not ask itself whether the disks are safe
    disks: tuple[str, ...] = ()  # targets of those that are copied into the images that are there


@dataclass(frozen=True)
class Image:
    """A file that holds, or is to hold, a disk."""

    path: Path
    format: str  # "qcow2" or "raw"
    size: int  # that a guest sees, bytes
    owner: int = 0
    group: int = 0
    mode: int = 0o600

    def is_like(self, other: Image) -> bool:
        """Whether one disk fits both."""
        return (self.format, self.size) == (other.format, other.size)


@dataclass(frozen=True)
class MigrationLook:
    """How far a migration is: bytes of RAM, and bytes per second. Disks come first: RAM's total is 0 until then."""

    left: int
    total: int
    sent: int
    speed: int
    dirtying: int
    disks_left: int = 0
    disks_total: int = 0


class Passage(Protocol):
    """A migration that goes on, whether or not somebody waits for it."""

    def wait(self, seconds: float) -> bool:
        """Wait until libvirt has answered, or so long; whether it has."""
        ...

    def result(self) -> None:
        """Raises Failed as libvirt has answered, OutcomeUnknown when it has not."""
        ...


class MigratingHost(Protocol):
    """A host's libvirt, this one's or a peer's, as far as guests that migrate need it."""

    @property
    def uri(self) -> str: ...
    def uuid(self) -> str:
        """The host's own."""
        ...

    def processor(self) -> str:
        """The host's own, as libvirt words it."""
        ...

    def look(self, name: str, guests: Collection[Guest], definitions: Mapping[str, str], processor: str) -> Peer:
        """What it has for such guests of a host with that processor; `definitions` are their live XML, by uuid."""
        ...

    def there(self, uuid: str) -> There | None:
        """Where the guest stands on it; None when its libvirt does not know it."""
        ...

    def state(self, uuid: str) -> GuestState | None:
        """Its state alone, which is quickly had."""
        ...

    def migratable(self, uuid: str) -> Migratable: ...
    def migrate(self, uuid: str, order: MigrationOrder) -> AbstractContextManager[Passage]:
        """Have the guest leave; what has begun goes on after the context, and when nobody is left to wait."""
        ...

    def migration(self, uuid: str) -> MigrationLook | None:
        """How far it is; None when there is none, or nothing is known of it yet."""
        ...

    def limit_downtime(self, uuid: str, seconds: float) -> None:
        """Have it stand still at the end for no longer than that, if its memory can be sent so."""
        ...

    def abort_job(self, uuid: str, within_seconds: float) -> None:
        """Break off what goes on with the guest, and wait until that has ended, one way or the other.

        Done when nothing goes on; Failed when it still does then.
        """
        ...

    def usable(self, within_seconds: float) -> bool:
        """Wait until it answers, or so long; whether it does."""
        ...

    def resume(self, uuid: str) -> None:
        """Have it run; done when it does."""
        ...

    def remove(self, uuid: str) -> None:
        """End a copy of it that never ran, and forget it; done when there is none. Raises Failed for one that runs."""
        ...

    def put_autostart(self, uuid: str, *, on: bool) -> None: ...
    def sees(self, path: Path) -> bool:
        """Whether there is a file of that name in that directory."""
        ...

    def places(self, paths: Collection[Path]) -> tuple[Place, ...]:
        """What there is for images of these names, in any order; what cannot be told is in their `fault`."""
        ...

    def disk_size(self, uuid: str, target: str) -> int:
        """What the guest sees of one of its disks, bytes."""
        ...

    def cut_copies(self, uuid: str) -> None:
        """Close the connections over which its disks are copied; done when there are none.

        Of a peer that is gone QEMU waits for an answer until TCP gives up, a quarter of an hour, and a job with it.
        """
        ...

    def image(self, path: Path) -> Image | None:
        """What has that name; None when nothing has. Its owner is not looked for."""
        ...

    def make_image(self, image: Image) -> None:
        """Make an empty one. Failed when there is something of that name: nothing is ever written over."""
        ...

    def remove_image(self, path: Path) -> None:
        """Remove it; done when there is none."""
        ...

    def agent(self, uuid: str) -> AbstractContextManager[GuestAgent]: ...
    def disconnect(self) -> None: ...

"""A test guest that lives on one of two hosts, and its migration by libvirt alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import libvirt

from tests.bench.guest_spec import GuestSpec
from tests.bench.link import A, B, Side
from tests.bench.proof import Proof
from tests.bench.two_hosts import MIGRATE_URIS, PLAIN_URIS, URIS, TwoHosts

LIVE = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_UNSAFE  # the disks' folder is no network file system, which is all that libvirt 9.0 takes
)


@dataclass(frozen=True)
class Travelling:
    """A guest of two hosts."""

    hosts: TwoHosts
    spec: GuestSpec

    @contextmanager
    def on(self, side: Side) -> Iterator[libvirt.virDomain]:
        """libvirt's guest there; libvirtError if there is none."""
        with self.hosts.connection(side) as connection:
            yield connection.lookupByUUIDString(self.spec.uuid)

    @contextmanager
    def proof(self, side: Side) -> Iterator[Proof]:
        with self.on(side) as domain:
            yield Proof(domain)

    def is_known_on(self, side: Side) -> bool:
        with self.hosts.connection(side) as connection:
            return self.spec.uuid in {domain.UUIDString() for domain in connection.listAllDomains()}

    def runs_on(self) -> list[Side]:
        """Every host on which libvirt has it running; two would be one too many."""
        found = []
        for side in (A, B):
            with suppress(libvirt.libvirtError), self.on(side) as domain:
                if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                    found.append(side)
        return found

    def migrate(self, source: Side, target: Side, flags: int = LIVE | libvirt.VIR_MIGRATE_TLS, **more: str) -> None:
        """One call of libvirt's; the source host does the rest. `more` are VIR_MIGRATE_PARAM_*, by their values."""
        uris = URIS if flags & libvirt.VIR_MIGRATE_TLS else PLAIN_URIS
        params = {libvirt.VIR_MIGRATE_PARAM_URI: MIGRATE_URIS[target], **more}
        # By a connection of its own: other calls on one that is used for this wait until the migration is done.
        connection = libvirt.open(self.hosts.uri(source))
        try:
            domain = connection.lookupByUUIDString(self.spec.uuid)
            domain.migrateToURI3(uris[target], params, flags)
        finally:
            connection.close()


@contextmanager
def guest(hosts: TwoHosts, spec: GuestSpec) -> Iterator[Travelling]:
    """A guest that begins on the first host and is gone from both afterwards."""
    with hosts.a.guest(spec):
        travelling = Travelling(hosts, spec)
        try:
            with travelling.proof(A) as proof:
                proof.wait_booted()
            yield travelling
        finally:
            with suppress(libvirt.libvirtError), travelling.on(B) as domain:
                with suppress(libvirt.libvirtError):
                    domain.destroy()
                domain.undefine()

"""``[[peer]]`` and ``[migrate]``: other hosts that guests may migrate to, and how they do."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Self
from urllib.parse import parse_qsl

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from hostagent.setting_types import AbsolutePath, Seconds, Table, YesOrNo


class Transport(StrEnum):
    """How a migrating guest's memory crosses, and how the two libvirts talk."""

    TLS = "tls"  # QEMU encrypts it; the other libvirt is reached by TLS or SSH
    SSH = "ssh"  # inside the connection of the two libvirts, which is SSH
    PLAIN = "plain"  # nobody encrypts it, and nobody proves who he is


_OVER: Mapping[Transport, tuple[str, ...]] = {
    Transport.TLS: ("qemu+tls", "qemu", "qemu+ssh", "qemu+libssh", "qemu+libssh2"),
    Transport.SSH: ("qemu+ssh", "qemu+libssh", "qemu+libssh2"),
}
# What may have nobody look at who the other host is (libvirt, "URIs"), and with which values it does not.
_UNSEEN: Mapping[str, frozenset[str]] = {
    "no_verify": frozenset(("0",)),
    "known_hosts_verify": frozenset(("normal",)),
}
_URI = r"[a-z0-9+]+://[A-Za-z0-9._~:/?=&%@\[\],+-]{1,500}"
Uri = Annotated[str, Field(pattern=f"^{_URI}$", description="a URI like 'qemu+tls://host2/system'")]
UriOrNone = Annotated[str, Field(pattern=f"^({_URI})?$", description="a URI, or ''")]


class PeerSettings(Table):
    """``[[peer]]``: another host that guests may migrate to; the first one that a guest fits is taken."""

    name: Annotated[
        str,
        Field(
            pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="a short name of letters, digits, '.', '_' and '-'"
        ),
    ]
    uri: Uri  # its libvirt, as hostagent and this host's libvirt reach it
    migrate_uri: UriOrNone = ""  # where QEMU sends to, "tcp://10.0.0.2"; "": its host's name
    transport: Annotated[Transport, Field(strict=False, description="tls, ssh or plain")] = Transport.TLS
    max_guests: Annotated[
        int, Field(ge=0, le=100_000, description="a whole number from 0, which means no limit, to 100000")
    ] = 0  # that may be on it, its own among them
    shared: Annotated[
        tuple[AbsolutePath, ...], Field(strict=False, description="a list of absolute paths of directories")
    ] = ()  # that are the same on both hosts
    # libvirt itself takes only file systems that it knows as shared, and disks that go past the page cache. true: take
    # what is in `shared` all the same. Whoever says so knows that both hosts see what is written at once.
    coherent: YesOrNo = False

    @model_validator(mode="after")
    def _transport_fits(self) -> Self:
        allowed = _OVER.get(self.transport)
        if allowed is not None:
            _require_over(allowed, self.uri, f"transport '{self.transport}', or another transport")
        return self


def _require_over(allowed: tuple[str, ...], uri: str, wish: str) -> None:
    """Raises PydanticCustomError unless the connection is of such a kind, and each end knows who the other one is."""
    if uri.partition("://")[0] not in allowed:
        raise PydanticCustomError("transport", f"a uri of {' or '.join(allowed)} for {wish}", {"uri": uri})
    for name, value in parse_qsl(uri.partition("?")[2], keep_blank_values=True):
        if value not in _UNSEEN.get(name.casefold(), (value,)):
            raise PydanticCustomError("transport", f"a uri without {name} for {wish}", {"uri": uri})


class MigrateSettings(Table):
    """``[migrate]``: how guests migrate to peers, and come back."""

    uri: UriOrNone = ""  # this host's libvirt, as the peers' libvirt reaches it; without it no guest comes back
    migrate_uri: UriOrNone = ""  # where a peer's QEMU sends to; "": this host's name
    comes_back: YesOrNo = Field(default=True, alias="return", description="true or false")  # once that is done
    copy_storage: YesOrNo = False  # copy disks that a peer does not see
    least_seconds: Seconds = 120.0  # what any guest is given to migrate within
    seconds_per_gib: Seconds = 60.0  # and what one of that much memory is
    downtime_seconds: Annotated[float, Field(gt=0, le=60, description="a number of seconds above 0, at most 60")] = 0.3
    lossy_emulation: YesOrNo = False  # take guests of which an emulating QEMU before 9.0 forgets some writes
    auto_converge: YesOrNo = True  # slow a guest down that writes faster than its memory crosses
    call_seconds: Seconds = 10.0  # deadline of one call of a peer's libvirt
    end_seconds: Seconds = 60.0  # until a migration that was broken off has ended on both sides


def require_the_way_back(migrate: MigrateSettings, peers: Iterable[PeerSettings]) -> None:
    """What crosses encrypted on the way there does so on the way back; PydanticCustomError otherwise."""
    if migrate.comes_back and migrate.uri:
        for one in peers:
            if one.transport is not Transport.PLAIN:
                _require_over(_OVER[Transport.TLS], migrate.uri, f"the way back, [migrate], from {one.name}")

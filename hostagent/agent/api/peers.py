"""Who is at the other end of a Unix socket, and whether he may ask anything.

All of it is what the kernel wrote down as he called connect(2): SO_PEERCRED has his user and group, SO_PEERGROUPS
(Linux 4.13) his supplementary groups. Neither is looked up anew, in /proc or in the user database, so it does not
matter who has got his pid since, what his process has become, or whether a directory service is slow.
"""

from __future__ import annotations

import errno
import grp
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from hostagent.errors import Refused
from hostagent.printable import one_line

_SO_PEERGROUPS = 59  # asm-generic/socket.h; not in Python's socket
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)
_GID = struct.Struct("I")
_MOST_GROUPS = 256  # what Python's getsockopt can take; a user of more is known by his own group alone


@dataclass(frozen=True)
class Peer:
    """A process as it connected."""

    pid: int
    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Who has connected; Refused when the kernel does not say."""
        try:
            seen = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(seen)
            more = _groups(connection)
        except (OSError, struct.error) as error:
            raise Refused("asking who has connected", found=str(error)) from error
        return cls(pid, uid, frozenset({gid & 0xFFFFFFFF, *more}))

    def __str__(self) -> str:
        return f"user {self.uid}, process {self.pid}"


@dataclass(frozen=True)
class Admission:
    """Root, and the members of one group if there is such a group."""

    gid: int | None
    group: str

    @classmethod
    def of_group(cls, name: str) -> Admission:
        """The group as the host knows it now."""
        try:
            return cls(grp.getgrnam(name).gr_gid, name)
        except KeyError:
            return cls(None, name)

    def check(self, peer: Peer) -> None:
        """Raises Refused unless he may ask."""
        if peer.uid == 0 or (self.gid is not None and self.gid in peer.gids):
            return
        raise Refused(
            "connecting to hostagent's agent",
            expected=f"root, or a member of the group {self.group}",
            found=f"user {peer.uid}",
            hint=f"use sudo; or have yourself put into the group {self.group}, and log in again",
        )


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * _GID.size)
    except OSError as error:
        if error.errno == errno.ERANGE:
            return ()
        raise
    return tuple(gid for (gid,) in _GID.iter_unpack(packed))


def who(request: web.Request) -> str:
    """Who asks, for the log."""
    transport = request.transport
    if transport is None:
        return "somebody who is gone"
    if (certificate := transport.get_extra_info("peercert")) is not None:
        return f"{_subject(certificate)} at {request.remote}"
    return str(Peer.of(transport.get_extra_info("socket")))


def _subject(certificate: Mapping[str, Any]) -> str:
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return one_line(f"certificate {', '.join(names) or 'without a name'}")[:120]

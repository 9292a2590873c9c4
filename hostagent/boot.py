"""Whether a guest has booted: what its agent says, or a TCP port that answers.

What a guest answers is hostile input. The commands are guest-file-open, -read and -close of QEMU's
qga/qapi-schema.json; guests of other systems than Linux, or of owners who forbid them, have no boot id to be had.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from contextlib import suppress

from hostagent.clock import AgentError, GuestAgent

_PATH = "/proc/sys/kernel/random/boot_id"  # random(4): another one at each boot
_BOOT_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COUNT = 64  # bytes that are read of it
_AGAIN_SECONDS = 0.5
_CONNECT_SECONDS = 5.0


def boot_id_of(agent: GuestAgent, within_seconds: float) -> str:
    """The id that the guest's kernel has given this boot; "" when its agent does not say.

    within_seconds: for each of the three answers.
    """
    try:
        handle = agent.ask("guest-file-open", {"path": _PATH, "mode": "r"}, within_seconds)
        if type(handle) is not int:  # a bool is an int, but no handle
            return ""
        try:
            read = agent.ask("guest-file-read", {"handle": handle, "count": _COUNT}, within_seconds)
        finally:
            with suppress(AgentError):
                agent.ask("guest-file-close", {"handle": handle}, within_seconds)
    except AgentError:
        return ""
    return _found_in(read)


def _found_in(read: object) -> str:
    text = read.get("buf-b64") if isinstance(read, dict) else None
    if not isinstance(text, str):
        return ""
    try:
        data = base64.b64decode(text, validate=True).strip()
    except ValueError:
        return ""
    return data.decode() if _BOOT_ID.fullmatch(data) else ""


def answers(host: str, port: int, within_seconds: float) -> bool:
    """Whether that TCP port can be connected to; tried again and again until it can, or for that long."""
    ends = time.monotonic() + within_seconds
    while True:
        left = ends - time.monotonic()
        with suppress(OSError), socket.create_connection((host, port), max(0.1, min(left, _CONNECT_SECONDS))):
            return True
        if (left := ends - time.monotonic()) <= 0:
            return False
        time.sleep(min(left, _AGAIN_SECONDS))

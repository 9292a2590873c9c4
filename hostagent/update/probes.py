"""What [[health]] asks of the outside: a connection, or a command of the host's owner. "" is the answer hoped for."""

from __future__ import annotations

import socket
from collections.abc import Callable

from hostagent import processes
from hostagent.errors import HostagentError
from hostagent.planning.health import Check
from hostagent.printable import one_line

SAID_LIMIT = 200  # characters of what a command says that are repeated
_ANY_STATUS = range(-64, 256)

Probe = Callable[[Check, float], str]
"""Asks once, for so many seconds at most; returns what was found instead of what is expected, "" when all is well."""


def ask(check: Check, within_seconds: float) -> str:
    """Ask the world. Looking up a name may take longer than it was given."""
    if check.address is not None:
        return _connects(check.address, within_seconds)
    return _succeeds(check.command, within_seconds)


def _connects(address: tuple[str, int], within_seconds: float) -> str:
    try:
        with socket.create_connection(address, timeout=within_seconds):
            return ""
    except TimeoutError:
        return "no answer"
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no resolver takes
        return getattr(error, "strerror", None) or str(error)


def _succeeds(command: tuple[str, ...], within_seconds: float) -> str:
    try:
        done = processes.run([*processes.WITH_US, *command], within_seconds=within_seconds, accept=_ANY_STATUS)
    except HostagentError as error:
        return error.found or str(error)
    if done.exit_status == 0:
        return ""
    said = [line for text in (done.stderr, done.stdout) for line in text.splitlines() if line.strip()]
    last = f": {one_line(said[-1])[:SAID_LIMIT]}" if said else ""
    status = done.exit_status
    return f"{f'exit status {status}' if status > 0 else f'signal {-status}'}{last}"

"""How a verb is started: as a child of the service, or by systemd in a unit of its own.

What a process starts inherits its seccomp filter, its capability bounding set, its no_new_privs and its namespaces, and
a new QEMU must have what libvirt gave the old one (surroundings.py). The service's unit takes such things away, so what
changes something gets a unit without them. Only the main process is ever signalled there: the guard of an update must
outlive it, and so must a QEMU that it has just started.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostagent.processes import WITH_US, c_locale

_VERB = "hostagent.cli"  # run as a module: nothing of it is imported here
STOP_SECONDS = 600  # as `hostagent cancel` waits: what has begun with a guest is finished or undone


class Launcher(Protocol):
    """Words -> an argument list, and the environment that goes with it."""

    def reading(self, words: Sequence[str]) -> Sequence[str]:
        """Of a verb that only looks: it ends with the service."""
        ...

    def changing(self, words: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
        """Of a verb that changes something: it goes on without the service."""
        ...


@dataclass(frozen=True)
class AsChild:
    """Processes of the service's own."""

    common: tuple[str, ...] = ()  # before each verb: --config FILE, --connect URI

    def reading(self, words: Sequence[str]) -> Sequence[str]:
        return (*WITH_US, *self._argv(words))

    def changing(self, words: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
        return self._argv(words)

    def _argv(self, words: Sequence[str]) -> Sequence[str]:
        return (sys.executable, "-m", _VERB, *self.common, *words)


@dataclass(frozen=True)
class AsUnit(AsChild):
    """The same, but what changes something is a transient service (systemd-run(1)); what waits for it may die."""

    def changing(self, words: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
        return (
            *WITH_US,
            "systemd-run",
            "--quiet",
            "--collect",
            "--pipe",
            "--wait",
            "--service-type=exec",
            f"--unit=hostagent-{words[0]}-{secrets.token_hex(4)}",
            f"--description=hostagent {words[0]}, started by its agent",
            "--property=KillMode=process",
            f"--property=TimeoutStopSec={STOP_SECONDS}",
            *(f"--setenv={name}={value}" for name, value in {"LC_ALL": c_locale()["LC_ALL"], **environment}.items()),
            "--",
            *self._argv(words),
        )


def launcher_of(common: tuple[str, ...], booted: Path = Path("/run/systemd/system")) -> Launcher:
    """By systemd where that is init: sd_booted(3)."""
    return AsUnit(common) if booted.is_dir() else AsChild(common)

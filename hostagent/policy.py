"""What a guest's owner allows an update to do to it: values, what they may be, and how several places add up; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from hostagent.plan import ClockPolicy

BUDGET_LIMIT_SECONDS = 3600.0
PRIORITY_LIMIT = 1000
NAMES_LIMIT = 64  # guests that one is never disturbed together with
NAME = r"[A-Za-z0-9._-]{1,64}"
_GUEST_NAME_LIMIT = 128
_LAST_PORT = 65535


class Allowed(StrEnum):
    """What a policy can allow."""

    IN_PLACE = "in-place"
    IN_PLACE_COPY = "in-place-copy"
    LIVE_MIGRATE = "live-migrate"
    REBOOT = "reboot"


class Setting(StrEnum):
    """A policy's settings, in the order in which they are shown."""

    ALLOW = "allow"
    BUDGET = "budget"
    CLOCK = "clock"
    PRIORITY = "priority"
    AVAILABILITY_SET = "availability-set"
    UPDATE_DOMAIN = "update-domain"
    NEVER_TOGETHER = "never-together"
    BOOT_TCP = "boot-tcp"

    @property
    def field(self) -> str:
        """Its name in a PolicyPart and a Policy, and in the settings."""
        return "budget_seconds" if self is Setting.BUDGET else self.replace("-", "_")


# What each may be: completes "expected ...".
EXPECTED: Mapping[Setting, str] = {
    Setting.ALLOW: f"some of {', '.join(Allowed)}",
    Setting.BUDGET: f"a number of seconds above 0, at most {BUDGET_LIMIT_SECONDS:g}",
    Setting.CLOCK: " or ".join((", ".join(list(ClockPolicy)[:-1]), list(ClockPolicy)[-1])),
    Setting.PRIORITY: f"a whole number from -{PRIORITY_LIMIT} to {PRIORITY_LIMIT}",
    Setting.AVAILABILITY_SET: "a name of at most 64 letters, digits, '.', '_' and '-'",
    Setting.UPDATE_DOMAIN: "a name of at most 64 letters, digits, '.', '_' and '-'",
    Setting.NEVER_TOGETHER: f"at most {NAMES_LIMIT} names of guests, each of at most {_GUEST_NAME_LIMIT} characters",
    Setting.BOOT_TCP: "a host and a TCP port, like 10.0.0.5:22 or [fd00::5]:22",
}


@dataclass(frozen=True)
class PolicyPart:
    """What one place says of a guest; None: nothing."""

    allow: frozenset[Allowed] | None = None
    budget_seconds: float | None = None
    clock: ClockPolicy | None = None
    priority: int | None = None
    availability_set: str | None = None  # "": none
    update_domain: str | None = None  # "": none
    never_together: frozenset[str] | None = None  # names of guests
    boot_tcp: str | None = None  # "": none

    def says(self, setting: Setting) -> object:
        """What it says of that; None: nothing."""
        value: object = getattr(self, setting.field)
        return value

    def over(self, other: PolicyPart) -> PolicyPart:
        """This one, and what only the other says."""
        said = {setting.field: self.says(setting) for setting in Setting if self.says(setting) is not None}
        return replace(other, **said)  # type: ignore[arg-type]

    def without(self, settings: Sequence[Setting]) -> PolicyPart:
        """The same, with nothing said of these."""
        return replace(self, **{setting.field: None for setting in settings})

    def wrong(self) -> Setting | None:
        """The first setting whose value it may not have; EXPECTED says what it may be."""
        return next((setting for setting in Setting if not _is_right(setting, self.says(setting))), None)


@dataclass(frozen=True)
class Policy:
    """What holds for a guest."""

    allow: frozenset[Allowed]
    budget_seconds: float  # the longest pause that it may see
    clock: ClockPolicy
    priority: int  # the higher, the earlier
    availability_set: str  # "" none
    update_domain: str
    never_together: frozenset[str]
    boot_tcp: str  # "HOST:PORT" that can be connected to once it has booted, or ""


@dataclass(frozen=True)
class Layer:
    """A place, and what it says of whom."""

    where: str
    part: PolicyPart
    names: str = "*"  # a guest's name, or a pattern


BUILT_IN = Layer(
    "built in",
    PolicyPart(
        allow=frozenset((Allowed.IN_PLACE, Allowed.IN_PLACE_COPY)),
        budget_seconds=30.0,
        clock=ClockPolicy.STEP,
        priority=0,
        availability_set="",
        update_domain="",
        never_together=frozenset(),
        boot_tcp="",
    ),
)


def merged(name: str, layers: Sequence[Layer]) -> tuple[Policy, Mapping[Setting, str]]:
    """What holds for the guest of that name, and where each setting is from; the weakest layer first."""
    total, origins = BUILT_IN.part, dict.fromkeys(Setting, BUILT_IN.where)
    for layer in layers:
        if name == layer.names or fnmatchcase(name, layer.names):
            total = layer.part.over(total)
            origins |= {setting: layer.where for setting in Setting if layer.part.says(setting) is not None}
    return Policy(**{setting.field: total.says(setting) for setting in Setting}), origins  # type: ignore[arg-type]


def is_guest_name(name: str) -> bool:
    """Whether a guest can have that name: libvirt allows nearly anything."""
    plain = name.isprintable() and name == name.strip() and "/" not in name
    return plain and 0 < len(name) <= _GUEST_NAME_LIMIT


def tcp_address(text: str) -> tuple[str, int] | None:
    """Host and port of "HOST:PORT", where an IPv6 address stands in brackets; None for anything else."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]{2,64})\]|([A-Za-z0-9._-]{1,253})):([1-9][0-9]{0,4})", text, re.ASCII)
    if found is None or int(found[3]) > _LAST_PORT:
        return None
    return found[1] or found[2], int(found[3])


def _is_right(setting: Setting, value: object) -> bool:
    match setting, value:
        case _, None | "":  # nothing is said, or that there is none
            return True
        case Setting.BUDGET, float():
            return math.isfinite(value) and 0 < value <= BUDGET_LIMIT_SECONDS
        case Setting.PRIORITY, int():
            return abs(value) <= PRIORITY_LIMIT
        case ((Setting.AVAILABILITY_SET | Setting.UPDATE_DOMAIN | Setting.BOOT_TCP), str()):
            tcp = setting is Setting.BOOT_TCP
            return (tcp_address(value) if tcp else re.fullmatch(NAME, value, re.ASCII)) is not None
        case Setting.NEVER_TOGETHER, frozenset():
            return len(value) <= NAMES_LIMIT and all(is_guest_name(name) for name in value)
    return True

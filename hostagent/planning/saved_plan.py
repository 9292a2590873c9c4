"""A plan in a file, approved now and carried out later, if the facts that it rests on are still the same. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hostagent.errors import UsageError
from hostagent.facts import Guest, Host, QemuTree
from hostagent.plan import Method, Technique
from hostagent.planning.guest_policy import Policies
from hostagent.planning.planner import chosen_guests
from hostagent.planning.rolling import Rolling
from hostagent.policy import PolicyPart

_NAMED = 8  # of what has changed; more say no more


class SavedPlan(BaseModel):
    """What was asked, and all that was seen as it was approved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[3] = 3
    component: Literal["qemu"] = "qemu"
    to: str  # the tree's name
    guests: tuple[str, ...]  # none named: all
    budget_seconds: float | None = None  # that was asked for; None: what each guest's policy says
    technique: Technique | None = None  # the only one to be used in place
    methods: tuple[Method, ...] | None = None  # the only ones to be used
    max_unavailable: int = 0  # guests at the same time; 0: any number
    canary: str = ""  # who goes first, or how many
    copy_storage: bool = False  # disks that a peer does not see are copied to it
    facts: dict[str, object]

    @classmethod
    def of(
        cls,
        host: Host,
        to: QemuTree,
        guests: Sequence[str],
        policies: Policies,
        *,
        technique: Technique | None = None,
        methods: Sequence[Method] | None = None,
        rolling: Rolling = Rolling(),  # noqa: B008 - frozen
    ) -> SavedPlan:
        """What was planned on this host."""
        return cls(
            to=to.name,
            guests=tuple(guests),
            budget_seconds=policies.asked.budget_seconds,
            technique=technique,
            methods=None if methods is None else tuple(methods),
            max_unavailable=rolling.max_unavailable,
            canary=rolling.canary,
            copy_storage=host.destinations.copies_storage,
            facts=facts_of(host, guests or None, policies),
        )

    @classmethod
    def read(cls, name: str, data: bytes) -> SavedPlan:
        """What is in a file of that name; UsageError when it is no plan of this format."""
        try:
            return cls.model_validate(json.loads(data))
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            raise UsageError(
                f"reading the plan {name}",
                expected="what hostagent plan --save wrote",
                found=_what_is_wrong(error),
                hint="save it again",
            ) from error

    def written(self) -> bytes:
        """As a file holds it."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()

    @property
    def rolling(self) -> Rolling:
        """How careful somebody wanted it to be."""
        return Rolling(self.max_unavailable, self.canary)

    def asking(self, policies: Policies) -> Policies:
        """What holds for guests, with what was asked for as it was saved."""
        return policies.keeping(PolicyPart(budget_seconds=self.budget_seconds))

    def changes(self, host: Host, policies: Policies) -> tuple[str, ...]:
        """What is not as it was when the plan was saved, each in words; () when it still holds.

        policies: what is said of guests now, without what was asked for then.
        """
        known = {guest.name for guest in host.guests}
        gone = tuple(f"guest {name}: gone" for name in self.guests if name not in known)
        now = () if gone else facts_of(host, self.guests or None, self.asking(policies))
        found = gone or tuple(_differences(self.facts, now, ()))
        left = len(found) - _NAMED
        return (*found[:_NAMED], *([f"and {left} more"] if left > 0 else []))


def _what_is_wrong(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
    return "no JSON"


def facts_of(host: Host, guests: Sequence[str] | None, policies: Policies) -> dict[str, object]:
    """What a plan for these guests rests on, as JSON can hold it; guests by name, and what holds for each.

    Left out is what comes and goes by itself: libvirt's clients, room for RAM, what peers have, other guests than those
    named, and what is kept of the system's QEMU as soon as somebody runs on it.
    """
    steady = [dataclasses.replace(guest, memory_room=None) for guest in chosen_guests(host, guests)]
    chosen = {guest.name: _with_policy(guest, policies) for guest in steady}
    used = {guest.qemu for guest in steady}
    trees = tuple(tree for tree in host.qemu if tree in used or tree not in host.copies_of_system_qemu)
    uuids = {guest.uuid for guest in steady}
    disks = tuple(disk for disk in host.destinations.disks if disk.guest in uuids)
    asked = dataclasses.replace(host.destinations, peers=(), disks=disks)
    plain = _plain(
        dataclasses.replace(host, guests=(), libvirt_clients=0, ram_room=None, qemu=trees, destinations=asked)
    )
    assert isinstance(plain, dict)  # noqa: S101 - a dataclass
    # As it will be read back: tuples as lists, keys as text.
    facts: dict[str, object] = json.loads(json.dumps({**plain, "guests": chosen}))
    return facts


def _with_policy(guest: Guest, policies: Policies) -> dict[str, object]:
    """What holds for it in the place of what its metadata says, which is but a part of that."""
    definition = dataclasses.replace(guest.definition, policy="")
    plain = _plain(dataclasses.replace(guest, definition=definition))
    assert isinstance(plain, dict)  # noqa: S101 - a dataclass
    held_to = policies.of(guest)
    return {**plain, "policy": str(held_to.unreadable) if held_to.unreadable else _plain(held_to.policy)}


def _plain(value: object) -> object:
    """Dataclasses as JSON can hold them; sets in order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, frozenset | set):
        return sorted(str(item) for item in value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _differences(then: object, now: object, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*then, *now)):
            yield from _differences(then.get(key), now.get(key), (*path, str(key)))
    elif then != now:
        if then is None or now is None:
            yield f"{_place(path)}: {'there now, not then' if then is None else 'gone'}"
        elif isinstance(then, list | dict) or isinstance(now, list | dict):  # nobody reads those
            yield f"{_place(path)}: changed"
        else:
            yield f"{_place(path)}: {_short(then)} then, {_short(now)} now"


def _place(path: tuple[str, ...]) -> str:
    if path[:1] == ("guests",) and len(path) > 1:
        return " ".join(["guest", path[1], *path[2:]])
    return " ".join(["host", *path])


def _short(value: object) -> str:
    text = str(value)
    if value is None or not text:
        return "none"
    return text if len(text) <= 60 else f"{text[:57]}..."

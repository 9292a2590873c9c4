"""What the agent does for others: each operation of its HTTP API is a verb of the command line. One table.

The parameters become the verb's words, and nothing else does: a value is never a word of its own, so that none is taken
for an option. No parameter is a path; a saved plan comes as its content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from hostagent.errors import UsageError
from hostagent.plan import ClockPolicy, Method, Technique
from hostagent.planning.saved_plan import SavedPlan
from hostagent.policy import Setting

_VISIBLE = r"^[^\u0000-\u001f\u007f]*$"
Value = Annotated[str, StringConstraints(max_length=256, pattern=_VISIBLE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_VISIBLE)]
PLAN_FILE = "@plan"  # in the place of a path, which whoever runs the verb makes
Names = Annotated[tuple[Name, ...], Field(max_length=1000)]


class Parameters(BaseModel):
    """What an operation is asked; a field's name is that of the verb's option, unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: ClassVar[Mapping[str, str]] = {}  # field -> option, where they differ
    arguments: ClassVar[tuple[str, ...]] = ()  # fields that are words without an option, in their order

    def words(self) -> tuple[str, ...]:
        """As the command line has them. What is not said, and what is as it would be anyway, is not among them."""
        said = [
            word for field in type(self).model_fields if field not in self.arguments for word in self._option(field)
        ]
        plain = [str(value) for field in self.arguments for value in _values(getattr(self, field))]
        return (*said, *(["--", *plain] if plain else []))

    def files(self) -> Mapping[str, bytes]:
        """What stands for a file among the words, and its content."""
        return {}

    def _option(self, field: str) -> list[str]:
        option = f"--{self.options.get(field, field).replace('_', '-')}"
        value = getattr(self, field)
        if isinstance(value, BaseModel):  # no word, but a file
            return []
        if isinstance(value, bool):
            return [option] if value else []
        return [f"{option}={one}" for one in _values(value)]


def _values(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple) else (value,)


class NoParameters(Parameters):
    """Nothing can be said."""


class Facts(Parameters):
    """Which guests."""

    options = {"guests": "guest"}

    guests: Annotated[Names, Field(description="These guests only; none: all.")] = ()


class Status(Parameters):
    """How much of it."""

    options = {"everything": "all"}

    everything: Annotated[bool, Field(description="Every update and rehearsal in the journal, oldest first.")] = False


class History(Parameters):
    """Which update."""

    arguments = ("update",)

    update: Annotated[Name | None, Field(description="The id of one update, or its beginning; none: all.")] = None


class _Wish(Parameters):
    options = {"guests": "guest", "methods": "method"}
    arguments = ("component",)

    to: Annotated[Value | None, Field(description="Version, or name of a tree; none: what is installed.")] = None
    guests: Annotated[Names, Field(description="These guests only; none: all.")] = ()
    budget: Annotated[Value | None, Field(description="Longest pause that a guest may see, like 10s or 500ms.")] = None
    technique: Annotated[Literal["auto"] | Technique | None, Field(description="How guests are carried over.")] = None
    methods: Annotated[tuple[Method, ...], Field(max_length=8, description="By these methods only; none: all.")] = ()
    max_unavailable: Annotated[
        int | None, Field(ge=0, le=1000, description="At most so many guests at the same time; 0 is any number.")
    ] = None
    canary: Annotated[Value | None, Field(description="This guest first, alone; or so many of them.")] = None
    copy_storage: Annotated[
        bool, Field(description="Copy disks that a peer does not see along with a guest that goes there.")
    ] = False


class NewPlan(_Wish):
    """What an update would be asked."""

    component: Annotated[Name, Field(description="qemu, libvirtd, kvm, kernel, all, or a component of the host's own.")]
    save: Annotated[bool, Field(description="Give the plan as a file too, for an update later; of qemu only.")] = False

    def words(self) -> tuple[str, ...]:
        return tuple("--save=plan" if word == "--save" else word for word in super().words())


class NewUpdate(_Wish):
    """What is to be updated: a saved plan, or a wish."""

    component: Annotated[Name | None, Field(description="As for a plan; not with a saved one.")] = None
    plan: Annotated[SavedPlan | None, Field(description="The content of a saved plan, in the place of a wish.")] = None
    keep_definition: Annotated[
        bool, Field(description="Leave definitions of guests whose RAM is copied as they are.")
    ] = False
    wait: Annotated[Value | None, Field(description="Between groups of guests, like 10m; 0s is not at all.")] = None
    yes: Annotated[bool, Field(description="Must be true: nobody can be asked here.")] = False

    def words(self) -> tuple[str, ...]:
        return (*(() if self.plan is None else ("--plan", PLAN_FILE)), *super().words())

    def files(self) -> Mapping[str, bytes]:
        return {} if self.plan is None else {PLAN_FILE: self.plan.written()}


class NewRollback(Parameters):
    """What goes back."""

    options = {"guests": "guest"}
    arguments = ("update",)

    update: Annotated[Name | None, Field(description="The id of an update, or its beginning; none: the last.")] = None
    guests: Annotated[Names, Field(description="These guests only; none: all.")] = ()
    budget: Annotated[Value | None, Field(description="Longest pause that a guest may see, like 10s or 500ms.")] = None
    yes: Annotated[bool, Field(description="Must be true: nobody can be asked here.")] = False


class Cancel(Parameters):
    """Whether to wait for it."""

    no_wait: Annotated[bool, Field(description="Only ask; do not wait until it has ended.")] = False


class OneGuest(Parameters):
    """Whose."""

    arguments = ("name",)

    name: Annotated[Name, Field(description="A guest's name.")]


class GuestPolicy(Parameters):
    """How a guest may be updated; what is not said stays as it was."""

    arguments = ("name",)

    name: Annotated[Name, Field(description="A guest's name.")]
    allow: Annotated[Value | None, Field(description="Methods, with commas between; or none.")] = None
    budget: Annotated[Value | None, Field(description="Longest pause that it may see, like 10s or 500ms.")] = None
    clock: Annotated[ClockPolicy | None, Field(description="What becomes of its clock after a pause.")] = None
    priority: Annotated[
        int | None, Field(ge=-1_000_000, le=1_000_000, description="Guests of a higher one go first.")
    ] = None
    availability_set: Annotated[Value | None, Field(description="Guests that stand in for one another.")] = None
    update_domain: Annotated[Value | None, Field(description="Which of its set may be disturbed with it.")] = None
    never_together: Annotated[Names, Field(description="No other guest at the same time.")] = ()
    boot_tcp: Annotated[Value | None, Field(description="HOST:PORT that answers once it has booted.")] = None
    unset: Annotated[
        tuple[Setting | Literal["all"], ...], Field(max_length=16, description="Say nothing of it any more.")
    ] = ()


class Verb(StrEnum):
    """How an operation is asked for."""

    GET = "GET"
    POST = "POST"
    PATCH = "PATCH"


@dataclass(frozen=True)
class Operation:
    """A verb, and where it is in the API. Parameters of a GET are in its query, others in a JSON body."""

    name: str
    words: tuple[str, ...]  # the verb
    verb: Verb
    path: str
    parameters: type[Parameters]
    summary: str
    answer: str  # what the document is that comes back
    changes: bool = False


EVENTS_PATH, STOP_PATH, DOCUMENT_PATH = "/v1/events", "/v1/stop", "/v1/openapi.json"
LINES = "application/x-ndjson"
"""What an answer is for whoever accepts it: JSON on each line, as it comes."""
FRONT_HEADER, SETTINGS_HEADER = "Hostagent-Front", "Hostagent-Settings"
"""Whom the verb speaks to; and the path of the settings that the agent must run with to be the right one."""

OPERATIONS = (
    Operation(
        *("inspect", ("inspect",), Verb.GET, "/v1/facts", Facts),
        "See the host and its guests, and what can be updated in place.",
        "The host, its components and its guests; as hostagent inspect --json.",
    ),
    Operation(
        *("plan", ("plan",), Verb.POST, "/v1/plans", NewPlan),
        "See what an update would do to each guest; touches none.",
        "`plan`: as hostagent plan --json; `saved`: what a file would hold, or null.",
    ),
    Operation(
        *("update", ("update",), Verb.POST, "/v1/updates", NewUpdate),
        "Carry out a saved plan, or a wish; answers once it has ended, and goes on when nobody waits.",
        "What became of each guest; as hostagent update --json.",
        changes=True,
    ),
    Operation(
        *("rollback", ("rollback",), Verb.POST, "/v1/rollbacks", NewRollback),
        "Bring the guests of an update back to where they were; otherwise as an update.",
        "What became of each guest; as hostagent rollback --json.",
        changes=True,
    ),
    Operation(
        *("cancel", ("cancel",), Verb.POST, "/v1/cancel", Cancel),
        "Have the update that is at work stop where that is safe.",
        "Who was asked, and whether it has ended; as hostagent cancel --json.",
    ),
    Operation(
        *("status", ("status",), Verb.GET, "/v1/status", Status),
        "See what became of updates, and whether one is open.",
        "Who is at work, and updates; as hostagent status --json.",
    ),
    Operation(
        *("history", ("history",), Verb.GET, "/v1/history", History),
        "See every update of this host, or one step by step.",
        "Updates, oldest first; as hostagent history --json.",
    ),
    Operation(
        *("guest show", ("guest", "show"), Verb.GET, "/v1/guest", OneGuest),
        "See how a guest may be updated, and where that is said.",
        "Each setting, and where it is from; as hostagent guest show --json.",
    ),
    Operation(
        *("guest set", ("guest", "set"), Verb.PATCH, "/v1/guest", GuestPolicy),
        "Say how a guest may be updated, in its libvirt metadata.",
        "Each setting as it is now; as hostagent guest set --json.",
        changes=True,
    ),
)


def operation(name: str) -> Operation:
    """The one of that name; KeyError when there is none."""
    return {one.name: one for one in OPERATIONS}[name]


def wrong(error: ValidationError) -> UsageError:
    """The first of them, in words."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UsageError("reading the parameters", expected="those of the operation", found=f"unknown {place!r}")
    doing = f"reading the parameter {place!r}" if place else "reading the parameters"
    found = "nothing" if first["type"] == "missing" else _shown(first["input"])
    return UsageError(doing, expected=f"what fits ({first['msg']})", found=found)


def _shown(value: object) -> str:
    match value:
        case str():
            return repr(value[:200])
        case None | bool() | float():
            return repr(value)
        case int():
            return repr(value) if value.bit_length() <= 64 else "a large number"
        case _:
            return "an object" if isinstance(value, Mapping) else "something else"

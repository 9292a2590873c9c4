"""``[policy]`` and ``[[policy.guest]]``: what may be done to guests that do not say it themselves."""

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from hostagent.plan import ClockPolicy
from hostagent.policy import (
    EXPECTED,
    NAME,
    NAMES_LIMIT,
    PRIORITY_LIMIT,
    Allowed,
    Layer,
    PolicyPart,
    Setting,
    is_guest_name,
    tcp_address,
)
from hostagent.setting_types import Seconds, Table


def _a_guest_name(name: str) -> str:
    if not is_guest_name(name):
        raise ValueError("no name of a guest")
    return name


GuestName = Annotated[str, AfterValidator(_a_guest_name)]
_Method = Annotated[Allowed, Field(strict=False)]


class PolicySettings(Table):
    """What may be said of guests, in ``[policy]`` of all and in a ``[[policy.guest]]`` of some; see docs/policy.md."""

    allow: Annotated[
        tuple[_Method, ...] | None,
        Field(strict=False, description=f"a list, empty or with {EXPECTED[Setting.ALLOW]}"),
    ] = None
    budget_seconds: Annotated[Seconds | None, Field(description=EXPECTED[Setting.BUDGET])] = None
    clock: Annotated[ClockPolicy | None, Field(strict=False, description=EXPECTED[Setting.CLOCK])] = None
    priority: Annotated[
        int | None, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT, description=EXPECTED[Setting.PRIORITY])
    ] = None
    availability_set: Annotated[
        str | None, Field(pattern=f"^({NAME})?$", description=EXPECTED[Setting.AVAILABILITY_SET])
    ] = None
    update_domain: Annotated[str | None, Field(pattern=f"^({NAME})?$", description=EXPECTED[Setting.UPDATE_DOMAIN])] = (
        None
    )
    boot_tcp: Annotated[str | None, Field(description=EXPECTED[Setting.BOOT_TCP])] = None
    never_together: Annotated[
        tuple[GuestName, ...] | None,
        Field(strict=False, max_length=NAMES_LIMIT, description=EXPECTED[Setting.NEVER_TOGETHER]),
    ] = None

    def part(self) -> PolicyPart:
        """As policies are made of."""
        together = self.never_together
        return PolicyPart(
            allow=None if self.allow is None else frozenset(self.allow),
            budget_seconds=self.budget_seconds,
            clock=self.clock,
            priority=self.priority,
            availability_set=self.availability_set,
            update_domain=self.update_domain,
            boot_tcp=self.boot_tcp,
            never_together=None if together is None else frozenset(together),
        )

    @field_validator("boot_tcp")
    @classmethod
    def _is_a_place(cls, place: str | None) -> str | None:
        if place and tcp_address(place) is None:
            raise ValueError("no place")
        return place


class GuestPolicySettings(PolicySettings):
    """``[[policy.guest]]``: what holds for guests of that name."""

    name: Annotated[str, Field(min_length=1, max_length=128, description="a guest's name, or a pattern like 'db*'")]


class PolicyTable(PolicySettings):
    """``[policy]``: what holds for guests that do not say it themselves."""

    guest: Annotated[
        tuple[GuestPolicySettings, ...], Field(strict=False, description="tables, each of them a [[policy.guest]]")
    ] = ()

    def layers(self) -> tuple[Layer, ...]:
        """Of all guests first, then those of some in their order: the last that fits counts."""
        some = (Layer(f"[[policy.guest]] {one.name}", one.part(), one.name) for one in self.guest)
        return (Layer("[policy]", self.part()), *some)

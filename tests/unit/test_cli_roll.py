"""update qemu over several groups: what is planned, shown and told, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sampled
from called import Caller, guest, with_private_ram
from journals import NEW, OLD, Writer

from hostagent.errors import Failed, HostagentError, NeedsOperator
from hostagent.facts import GuestState
from hostagent.hypervisor.fake_metadata import in_namespace
from hostagent.plan import GuestPlan, Plan
from hostagent.planning.health import Before, Complaint, Health, Sign
from hostagent.policy import PolicyPart
from hostagent.policy_xml import written_policy
from hostagent.update.journal import Entry, Kind, Outcome, UpdateRecord
from hostagent.update.order import OrderedGuest, UpdateOrder
from hostagent.update.subject import Ports

UPDATE = ("update", "qemu", "--to", "10.0", "--yes")
PLAN = ("plan", "qemu", "--to", "10.0")
ILL = Health((Complaint("availability set db", Sign.TCP, "port 5432 to take a connection", "Connection refused"),))


def placed(name: str, availability_set: str, update_domain: str) -> Any:
    own = PolicyPart(availability_set=availability_set, update_domain=update_domain)
    plain = guest(name)
    return replace(plain, definition=replace(plain.definition, policy=in_namespace(written_policy(own))))


@dataclass
class World:
    """What updates do to guests here, and what is found of them."""

    hostagent: Caller
    ends: dict[str, Outcome | HostagentError] = field(default_factory=dict)  # all others are updated
    health: list[Health] = field(default_factory=list)
    went: list[list[str]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def update(
        self, ports: Ports, _host: object, plan: Plan, *, update_id: str, tell: Any, **_: object
    ) -> UpdateRecord:
        names = [one.name for one in plan.to_update]
        for name in names:
            tell(f"uuid of {name}", "switch", "begun")
            if isinstance(end := self.ends.get(name), HostagentError):
                raise end
        self.went.append(names)
        self.meanwhile()
        guests = tuple(
            OrderedGuest(uuid=f"uuid of {name}", name=name, before=OLD, budget_seconds=10.0) for name in names
        )
        place = plan.place
        order = UpdateOrder(
            kind="update",  # type: ignore[arg-type]
            to=NEW,
            guests=guests,
            pid=1,
            **({"roll": place.roll, "group": place.group, "groups": place.groups} if place else {}),  # type: ignore[arg-type]
        )
        writer = Writer()
        rows = [Entry(Kind.UPDATE_BEGUN, body=order.body())]
        rows += [Entry(Kind.GUEST_BEGUN, one.uuid, body={"name": one.name}) for one in guests]
        ends = {name: self.ends.get(name, Outcome.UPDATED) for name in names}
        for name, end in ends.items():
            body = {"outcome": end, "reason": "" if end is Outcome.UPDATED else "it would not", "kind": ""}
            rows.append(Entry(Kind.GUEST_ENDED, f"uuid of {name}", body=body))
        if Outcome.NEEDS_OPERATOR not in ends.values():
            worst = next((end for end in ends.values() if end is not Outcome.UPDATED), Outcome.UPDATED)
            rows.append(Entry(Kind.UPDATE_ENDED, body={"outcome": worst, "reason": ""}))
        ports.journal.append(update_id, *rows)
        writer.append(update_id, *rows)
        return writer.records()[0]

    # -- the gate

    def has_checks_for(self, names: Sequence[str]) -> bool:
        return False

    def before(self, guests: Sequence[GuestPlan]) -> tuple[Before, ...]:
        return tuple(Before(one.name, one.uuid, GuestState.RUNNING, answered=True) for one in guests)

    def after(self, *_: object) -> Health:
        return self.health.pop(0) if self.health else Health()


@pytest.fixture
def world(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two update domains of a set, one guest that is in none, and one that cannot be updated."""
    hostagent.host = sampled.host(
        qemu=(OLD, NEW),
        guests=(placed("db1", "db", "1"), placed("db2", "db", "2"), guest("web1"), with_private_ram("cache")),
    )
    made = World(hostagent)
    monkeypatch.setattr("hostagent.cli.roll.update_qemu", made.update)
    monkeypatch.setattr("hostagent.cli.roll.gate_of", lambda *_: made)
    monkeypatch.setattr("hostagent.update.journal.SqliteJournal.open_updates", lambda _: ())
    return made


# -- the plan


def test_a_plan_shows_the_groups(world: World) -> None:
    result = world.hostagent(*PLAN)
    assert "One group after the other, each once the one before it is well:" in result.stdout
    assert "  1 of 2: db1, web1\n  2 of 2: db2\n" in result.stdout
    assert world.hostagent.json(*PLAN)["groups"] == [["db1", "web1"], ["db2"]]


def test_a_plan_of_one_group_says_nothing_of_groups(hostagent: Caller) -> None:
    assert "One group after" not in hostagent(*PLAN).stdout
    assert "groups" not in hostagent.json(*PLAN)


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        (("--max-unavailable", "1"), [["db1"], ["db2"], ["web1"]]),
        (("--max-unavailable", "0"), [["db1", "web1"], ["db2"]]),
        (("--canary", "db2"), [["db2"], ["db1", "web1"]]),
        (("--canary", "1"), [["db1"], ["db2", "web1"]]),
        (("--canary", "web1", "--max-unavailable", "1"), [["web1"], ["db1"], ["db2"]]),
    ],
)
def test_limits_and_canaries(world: World, words: tuple[str, ...], groups: list[list[str]]) -> None:
    assert world.hostagent.json(*PLAN, *words)["groups"] == groups
    world.hostagent(*UPDATE, *words)
    assert [sorted(names) for names in world.went] == groups


def test_a_limit_in_the_settings_counts_where_none_is_asked_for(world: World) -> None:
    with world.hostagent.settings.open("a") as file:
        file.write("[roll]\nmax_unavailable = 1\n")
    assert len(world.hostagent.json(*PLAN)["groups"]) == 3
    assert len(world.hostagent.json(*PLAN, "--max-unavailable", "0")["groups"]) == 2


@pytest.mark.parametrize("component", ["libvirtd", "kvm", "kernel", "all"])
@pytest.mark.parametrize("words", [("--max-unavailable", "1"), ("--canary", "web1"), ("--wait", "1m")])
def test_what_only_groups_of_guests_have(world: World, component: str, words: tuple[str, str]) -> None:
    result = world.hostagent("update", component, *words, "--yes")
    assert result.exit_code == 2
    assert f"expected no {words[0]} for {component}" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--canary", "nobody"), "reading --canary: expected one of the guests that would be updated (db1, db2, web1)"),
        (("--canary", "cache"), "reading --canary: expected one of the guests that would be updated"),
        (("--canary", ""), "reading --canary"),
        (("--wait", "25h"), "reading --wait: expected at most 24h, found 25h"),
        (("--wait", "soon"), "reading --wait"),
        (("--max-unavailable", "-1"), "-1"),
    ],
)
def test_words_that_nobody_can_do(world: World, words: tuple[str, str], said: str) -> None:
    result = world.hostagent(*UPDATE, *words)
    assert (result.exit_code, world.went) == (2, [])
    assert said in result.stderr


def test_a_saved_plan_keeps_its_groups(world: World) -> None:
    file = str(world.hostagent.settings.parent / "p")
    assert world.hostagent(*PLAN, "--canary", "db2", "--max-unavailable", "1", "--save", file).exit_code == 0
    assert world.hostagent("update", "--plan", file, "--yes").exit_code == 0
    assert world.went == [["db2"], ["db1"], ["web1"]]
    assert world.hostagent("update", "--plan", file, "--yes", "--canary", "db2").exit_code == 2


def test_a_person_is_asked_about_groups(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.cli.output.Output.can_ask", lambda _: True)
    result = world.hostagent(*UPDATE[:-1], answer="y\n")
    assert "Update 3 guests, in 2 groups one after the other, each paused for at most 30 s? [y/N]" in result.stdout
    assert world.went == [["db1", "web1"], ["db2"]]


# -- how it goes, and ends


def test_all_groups(world: World) -> None:
    result = world.hostagent(*UPDATE)
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if line.startswith("roll: ")] == [
        "roll: group 1 of 2: db1, web1",
        "roll: is group 1 of 2 well?",
        "roll: group 2 of 2: db2",
        "roll: is group 2 of 2 well?",
    ]
    assert "3 of 3 guests updated. All groups are done." in result.stdout
    assert result.stdout.endswith("Left out: cache.\n")
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_for_programs(world: World) -> None:
    document = world.hostagent.json(*UPDATE)
    assert [[one["name"] for one in update["guests"]] for update in document["updates"]] == [["db1", "web1"], ["db2"]]
    assert [update["roll"] for update in document["updates"]] == [
        {"id": document["roll"], "group": number, "groups": 2, "stopped": None} for number in (1, 2)
    ]
    assert (document["stopped"], document["reason"], document["untouched"]) == (None, "", [])
    assert [one["name"] for one in document["skipped"]] == ["cache"]


def test_guests_that_are_not_well_leave_the_rest_untouched(world: World) -> None:
    world.health = [ILL]
    document = world.hostagent.json(*UPDATE, code=4)
    assert world.went == [["db1", "web1"]]
    assert (document["stopped"], document["untouched"]) == ("unhealthy", ["db2"])
    assert document["reason"] == (
        "group 1 of 2 is not well: availability set db: "
        "expected port 5432 to take a connection, found Connection refused"
    )
    world.health = [ILL]
    result = world.hostagent(*UPDATE)
    assert "2 of 3 guests updated. Stopped: group 1 of 2 is not well:" in " ".join(result.stdout.split())
    assert "Untouched: db2." in result.stdout


@pytest.mark.parametrize(
    ("end", "code"), [(Outcome.ROLLED_BACK, 4), (Outcome.GONE, 4), (Outcome.LOST, 5), (Outcome.NEEDS_OPERATOR, 5)]
)
def test_a_guest_that_was_not_updated_leaves_the_rest_untouched(world: World, end: Outcome, code: int) -> None:
    world.ends = {"web1": end}
    document = world.hostagent.json(*UPDATE, code=code)
    assert (document["stopped"], document["untouched"], world.went) == ("failed", ["db2"], [["db1", "web1"]])
    assert "web1" in document["reason"]


@pytest.mark.parametrize(("error", "code"), [(Failed("rehearsing"), 4), (NeedsOperator("writing it down"), 5)])
def test_a_later_update_does_not_begin(world: World, error: HostagentError, code: int) -> None:
    world.ends = {"db2": error}
    document = world.hostagent.json(*UPDATE, code=code)
    assert [one["guests"][0]["name"] for one in document["updates"]] == ["db1"]
    assert (document["stopped"], str(error) in document["reason"]) == ("failed", True)


def test_asked_to_stop(world: World) -> None:
    world.meanwhile = lambda: os.kill(os.getpid(), signal.SIGTERM)
    document = world.hostagent.json(*UPDATE, code=128 + signal.SIGTERM)
    assert (document["stopped"], document["untouched"], world.went) == ("cancelled", ["db2"], [["db1", "web1"]])


def test_a_signal_in_the_last_group_stops_nothing(world: World) -> None:
    world.meanwhile = lambda: os.kill(os.getpid(), signal.SIGTERM) if len(world.went) == 2 else None
    assert world.hostagent(*UPDATE).exit_code == 0


def test_history_and_status_know_of_the_roll(world: World) -> None:
    world.health = [Health(), ILL]
    document = world.hostagent.json(*UPDATE, "--max-unavailable", "1", code=4)
    history = world.hostagent.json("history")["updates"]
    assert [update["roll"]["group"] for update in history] == [1, 2]
    assert [update["roll"]["stopped"] for update in history] == [None, document["reason"]]
    shown = world.hostagent("history").stdout
    assert "updated  1 of 3\n" in shown
    assert "updated  2 of 3, stopped\n" in shown
    status = world.hostagent("status").stdout
    assert status.count(f"of roll {document['roll']}") == 2
    assert "The roll went no further: group 2 of 3 is not well" in status
    assert "is not well" in world.hostagent("history", history[1]["id"]).stdout


# -- for other verbs


def test_guests_go_back_in_groups_too(world: World) -> None:
    assert world.hostagent(*UPDATE, "--guest", "db1").exit_code == 0
    updates = [("db1", "1"), ("db2", "2")]
    world.hostagent.host = sampled.host(
        qemu=(OLD, NEW), guests=tuple(replace(placed(name, "db", at), qemu=NEW) for name, at in updates)
    )
    world.hostagent.write(lambda writer: writer.updated("20261101-1", "db1", "db2"))
    world.went.clear()
    document = world.hostagent.json("rollback", "20261101-1", "--yes")
    assert world.went == [["db1"], ["db2"]]
    assert [len(update["guests"]) for update in document["updates"]] == [1, 1]
    assert document["rolls"][0]["groups"] == [["db1"], ["db2"]]
    assert document["rolls"][0]["updates"] == [update["id"] for update in document["updates"]]

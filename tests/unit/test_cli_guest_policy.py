"""guest show and set: what is said, from where, and what is refused; and what a policy means for plans."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sampled
from called import Caller, guest
from journals import HANDOVER, NEW, OLD, Writer

from hostagent.facts import Guest
from hostagent.hypervisor.fake_metadata import in_namespace
from hostagent.policy import PolicyPart
from hostagent.policy_xml import written_policy
from hostagent.update.journal import Outcome

UNREADABLE = '<p:policy xmlns:p="urn:hostagent:policy:1"><p:quux/></p:policy>'
SETTINGS = """
[policy]
clock = "report"
[[policy.guest]]
name = "db*"
budget_seconds = 2
never_together = ["web1"]
"""


def saying(plain: Guest, text: str) -> Guest:
    return replace(plain, definition=replace(plain.definition, policy=text))


@dataclass
class Metadata:
    """libvirt's, as far as it is written to."""

    caller: Caller
    put: list[tuple[str, PolicyPart]] = field(default_factory=list)

    def write(self, uuid: str, own: PolicyPart) -> None:
        self.put.append((uuid, own))
        guests = [
            saying(one, in_namespace(written_policy(own))) if one.uuid == uuid else one
            for one in self.caller.host.guests
        ]
        self.caller.host = replace(self.caller.host, guests=tuple(guests))


@pytest.fixture
def metadata(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> Metadata:
    made = Metadata(hostagent)
    monkeypatch.setattr(
        "hostagent.hypervisor.libvirt.LibvirtApi.put_policy", lambda _, uuid, own: made.write(uuid, own)
    )
    return made


def shown(hostagent: Caller, name: str) -> dict[str, Any]:
    found: dict[str, Any] = hostagent.json("guest", "show", name)["policy"]
    return found


# -- show


def test_each_setting_is_shown_with_where_it_is_from(hostagent: Caller, metadata: Metadata) -> None:
    hostagent.settings.write_text(hostagent.settings.read_text() + SETTINGS)
    metadata.write("uuid of db9", PolicyPart(priority=3, availability_set="db"))
    assert hostagent.json("guest", "show", "db9") == {
        "name": "db9",
        "uuid": "uuid of db9",
        "state": "running",
        "policy": {
            "allow": {"value": ["in-place", "in-place-copy"], "from": "built in"},
            "budget": {"value": 2.0, "from": "[[policy.guest]] db*"},
            "clock": {"value": "report", "from": "[policy]"},
            "priority": {"value": 3, "from": "its metadata"},
            "availability-set": {"value": "db", "from": "its metadata"},
            "update-domain": {"value": None, "from": "built in"},
            "never-together": {"value": ["web1"], "from": "[[policy.guest]] db*"},
            "boot-tcp": {"value": None, "from": "built in"},
        },
    }
    result = hostagent("guest", "show", "db9")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "db9: running"
    assert "allow in-place, in-place-copy built in" in lines
    assert "budget 2 s [[policy.guest]] db*" in lines
    assert "update-domain – built in" in lines
    assert not hostagent.state.exists()  # it only looks


def test_a_guest_that_is_not_there(hostagent: Caller) -> None:
    assert hostagent("guest", "show", "nobody").exit_code == 2
    assert hostagent("guest", "show").exit_code == 2


def test_a_policy_that_cannot_be_read_is_refused_with_what_to_do(hostagent: Caller, metadata: Metadata) -> None:
    hostagent.host = sampled.host(guests=(saying(guest("web1"), UNREADABLE),))
    for words in (("show", "web1"), ("set", "web1", "--priority", "1"), ("set", "web1", "--unset", "budget")):
        result = hostagent("guest", *words)
        assert (result.exit_code, metadata.put) == (3, [])
        assert "reading the policy of guest 'web1': expected one of allow, budget, " in result.stderr
        assert "hostagent guest set web1 --unset all" in result.stderr
    assert hostagent("guest", "set", "web1", "--unset", "all").exit_code == 0
    assert metadata.put == [("uuid of web1", PolicyPart())]


# -- set


def test_all_of_it_at_once(hostagent: Caller, metadata: Metadata) -> None:
    words = ("--allow", "in-place, in-place-copy", "--budget", "1500ms", "--clock", "off", "--priority", "-10")
    words += ("--availability-set", "db", "--update-domain", "1", "--never-together", "web1", "--never-together", "a,b")
    words += ("--boot-tcp", "[fd00::5]:22")
    result = hostagent("guest", "set", "db9", *words)
    assert result.exit_code == 0, result.output
    found = shown(hostagent, "db9")
    assert {one["from"] for one in found.values()} == {"its metadata"}
    assert {name: one["value"] for name, one in found.items()} == {
        "allow": ["in-place", "in-place-copy"],
        "budget": 1.5,
        "clock": "off",
        "priority": -10,
        "availability-set": "db",
        "update-domain": "1",
        "never-together": ["a,b", "web1"],
        "boot-tcp": "[fd00::5]:22",
    }


def test_what_is_not_said_stays(hostagent: Caller, metadata: Metadata) -> None:
    for words in (("--budget", "2s"), ("--priority", "4"), ("--unset", "budget", "--allow", "none")):
        assert hostagent("guest", "set", "db9", *words).exit_code == 0
    uuid, own = metadata.put[-1]
    assert (uuid, own) == ("uuid of db9", PolicyPart(allow=frozenset(), priority=4))
    assert hostagent.json("guest", "set", "db9", "--unset", "all", "--clock", "off")["policy"]["priority"] == {
        "value": 0,
        "from": "built in",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected what to set, or --unset, found neither"),
        (("--allow", "magic"), "reading --allow: expected some of in-place, in-place-copy, live-migrate, reboot"),
        (("--allow", ""), "reading --allow"),
        (("--budget", "0s"), "reading --budget"),
        (("--budget", "2h"), "at most 1h"),
        (("--budget", "2"), "like 10s"),
        (("--clock", "slew"), "Invalid value for '--clock': 'slew' is not one of 'step', 'report', 'off'"),
        (("--priority", "1001"), "reading --priority: expected a whole number from -1000 to 1000, found 1001"),
        (("--priority", "high"), "Invalid value for '--priority'"),
        (("--availability-set", "a b"), "expected a name of at most 64 letters, digits, '.', '_' and '-', found 'a b'"),
        (("--availability-set", ""), "hint: --unset availability-set"),
        (("--update-domain", "x" * 65), "reading --update-domain"),
        (("--boot-tcp", "10.0.0.5"), "reading --boot-tcp: expected a host and a TCP port, like 10.0.0.5:22"),
        (("--boot-tcp", ""), "hint: --unset boot-tcp"),
        (("--never-together", "db9"), "reading --never-together: expected another guest, found 'db9'"),
        (("--never-together", "a/b"), "reading --never-together: expected at most 64 names of guests"),
        (("--never-together", ""), "reading --never-together"),
        (("--budget", "2s", "--unset", "budget"), "expected --budget or --unset of it, found both"),
        (("--unset", "quux"), "is not one of 'allow', 'budget'"),
    ],
)
def test_what_makes_no_sense_changes_nothing(
    hostagent: Caller, metadata: Metadata, words: tuple[str, ...], said: str
) -> None:
    result = hostagent("guest", "set", "db9", *words)
    assert (result.exit_code, result.stdout, metadata.put) == (2, "", [])
    assert said in result.stderr
    assert hostagent("guest", "set", "nobody", "--priority", "1").exit_code == 2


def test_while_an_update_goes_on_it_is_refused(hostagent: Caller, metadata: Metadata) -> None:
    lock = hostagent.held_by_somebody("update qemu")
    try:
        result = hostagent("guest", "set", "db9", "--priority", "1")
    finally:
        lock.release()
    assert (result.exit_code, metadata.put) == (3, [])
    assert "guest set: expected no other update on this host, found 'update qemu'" in result.stderr


def test_while_an_update_waits_for_a_person_it_is_refused(
    hostagent: Caller, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(writer: Writer) -> None:
        writer.begin("u1", "db9")
        writer.steps("u1", "db9", *HANDOVER)
        writer.end_guest("u1", "db9", Outcome.NEEDS_OPERATOR, "stuck")

    hostagent.write(fill)
    monkeypatch.setattr("hostagent.session.recover", lambda *_, **__: hostagent_open(hostagent))
    result = hostagent("guest", "set", "db9", "--priority", "1")
    assert (result.exit_code, metadata.put) == (5, [])


def hostagent_open(hostagent: Caller) -> tuple[Any, ...]:
    """Recovery could not close it."""
    from hostagent import wiring
    from hostagent.update.journal_reader import read_updates

    return read_updates(wiring.journal_path(hostagent.config()))


# -- and then


def test_a_plan_goes_by_it(hostagent: Caller, metadata: Metadata) -> None:
    metadata.write("uuid of db9", PolicyPart(budget_seconds=0.5, priority=1))
    metadata.write("uuid of web1", PolicyPart(allow=frozenset()))
    first, second = hostagent.json("plan", "qemu", "--to", "10.0")["guests"]
    assert (first["name"], first["budget_seconds"], first["clock"]) == ("db9", 0.5, "step")
    assert [blocker["reason"] for blocker in second["blockers"]] == ["policy"]
    result = hostagent("plan", "qemu", "--to", "10.0")
    assert "500 ms" in result.stdout
    assert "expected a policy that allows in-place, found one that allows none (its metadata)" in result.stdout
    first, _ = hostagent.json("plan", "qemu", "--to", "10.0", "--budget", "7s")["guests"]
    assert first["budget_seconds"] == 7.0


def test_inspect_says_what_a_policy_forbids(hostagent: Caller, metadata: Metadata) -> None:
    metadata.write("uuid of web1", PolicyPart(allow=frozenset()))
    (web1,) = hostagent.json("inspect", "--guest", "web1")["guests"]
    assert web1["in_place"]["possible"] is False
    assert [blocker["reason"] for blocker in web1["in_place"]["blockers"]] == ["policy"]


def test_a_saved_plan_does_not_hold_once_a_policy_has_changed(
    hostagent: Caller, metadata: Metadata, tmp_path: Any
) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), guest("db9")))
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1", "db9"))
    file = str(tmp_path / "a.plan")
    assert hostagent("plan", "qemu", "--to", "10.0", "--save", file).exit_code == 0
    metadata.write("uuid of db9", PolicyPart(budget_seconds=2.0))
    result = hostagent("update", "--plan", file, "--yes")
    assert (result.exit_code, hostagent.plans) == (3, [])
    assert "found guest db9 policy budget_seconds: 30.0 then, 2.0 now" in result.stderr
    metadata.write("uuid of db9", PolicyPart(budget_seconds=30.0))  # said by another, and the same
    assert hostagent("update", "--plan", file, "--yes").exit_code == 0
    web1, db9 = hostagent.host.guests
    hostagent.host = replace(hostagent.host, guests=(saying(web1, UNREADABLE), db9))
    assert "guest web1 policy: changed" in hostagent("update", "--plan", file, "--yes").stderr
    hostagent.host = replace(hostagent.host, guests=(web1, db9))
    hostagent.settings.write_text(hostagent.settings.read_text() + "[policy]\nbudget_seconds = 9\n")
    assert "guest web1 policy budget_seconds: 30.0 then, 9.0 now" in hostagent("update", "--plan", file).stderr


def test_what_was_asked_for_is_in_a_saved_plan(hostagent: Caller, metadata: Metadata, tmp_path: Any) -> None:
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1", "db9"))
    file = str(tmp_path / "a.plan")
    assert hostagent("plan", "qemu", "--to", "10.0", "--budget", "500ms", "--save", file).exit_code == 0
    metadata.write("uuid of db9", PolicyPart(budget_seconds=2.0))  # which counts for less than that
    assert hostagent("update", "--plan", file, "--yes").exit_code == 0
    assert [one.budget_seconds for one in hostagent.plans[-1].to_update] == [0.5, 0.5]


def test_nothing_of_a_guest_s_words_reaches_a_terminal(hostagent: Caller, metadata: Metadata) -> None:
    hostile = '<p:policy xmlns:p="urn:hostagent:policy:1"><p:clock>\u202e\u009b31m</p:clock></p:policy>'
    hostagent.host = sampled.host(guests=(saying(guest("web1"), hostile),))
    result = hostagent("guest", "show", "web1")
    assert result.exit_code == 3
    assert "\u202e" not in result.stderr
    assert "\u009b" not in result.stderr

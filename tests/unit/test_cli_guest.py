"""guest adopt: which guests, onto what, what is said; and how reports tell of RAM that was copied."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sampled
from called import Caller, guest, shut_off
from journals import NEW, OLD, Writer

from hostagent.facts import Guest
from hostagent.plan import Method
from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind


def ordinary(name: str, **changed: Any) -> Guest:
    return replace(sampled.guest("anonymous"), **{"name": name, "uuid": f"uuid of {name}", "qemu": OLD, **changed})


@dataclass
class Definitions:
    """What libvirt is asked to change."""

    already: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def adopt(self, uuid: str) -> bool:
        self.asked.append(uuid)
        return uuid not in self.already


@pytest.fixture
def definitions(monkeypatch: pytest.MonkeyPatch) -> Definitions:
    made = Definitions(already=("uuid of db9",))
    monkeypatch.setattr("hostagent.hypervisor.libvirt.LibvirtApi.adopt_definition", lambda _, uuid: made.adopt(uuid))
    return made


@pytest.fixture
def mixed(hostagent: Caller) -> Caller:
    hostagent.host = sampled.host(
        qemu=(OLD, NEW), guests=(ordinary("web1"), ordinary("db9", qemu=NEW), guest("files"), shut_off("off"))
    )

    def adopted(writer: Writer, update: str) -> None:
        names = [planned.name for planned in hostagent.plans[-1].to_update]
        writer.begin(update, *names, kind=OrderKind.ADOPTION, to=OLD, method=Method.IN_PLACE_COPY)
        for name in names:
            writer.measured(update, name, pause_seconds=0.1, copied_bytes=10**9, copy_seconds=4.0, definition="adopted")
            writer.end_guest(update, name, Outcome.UPDATED)
        writer.end(update, Outcome.UPDATED)

    hostagent.updates_by(adopted)
    return hostagent


def test_each_stays_on_its_qemu(mixed: Caller) -> None:
    result = mixed("guest", "adopt", "web1", "db9", "--yes")
    assert result.exit_code == 0, result.output
    assert [(plan.to, [one.name for one in plan.to_update], plan.adopts) for plan in mixed.plans] == [
        (OLD, ["web1"], True),
        (NEW, ["db9"], True),
    ]
    assert "1 guest adopted, RAM copied into a shared file." in result.stdout


def test_what_has_its_ram_in_files_stays_as_it_is(mixed: Caller) -> None:
    result = mixed("guest", "adopt", "files", "--yes")
    assert (result.exit_code, mixed.plans) == (0, [])
    assert "Nothing to do." in result.stdout


def test_one_that_cannot_be_adopted_refuses_it_all(mixed: Caller) -> None:
    mixed.host = sampled.host(qemu=(OLD, NEW), guests=(ordinary("web1", job="a backup"), ordinary("db9")))
    result = mixed("guest", "adopt", "web1", "db9", "--yes")
    assert (result.exit_code, mixed.plans) == (3, [])
    assert "adopting RAM" in result.stderr


def test_nobody_of_that_name(mixed: Caller) -> None:
    assert mixed("guest", "adopt", "nobody", "--yes").exit_code == 2
    assert mixed("guest", "adopt").exit_code == 2


def test_only_from_the_next_boot_on(mixed: Caller, definitions: Definitions) -> None:
    document = mixed.json("guest", "adopt", "web1", "db9", "off", "--next-boot")
    assert document == {
        "guests": [
            {"name": "web1", "changed": True},
            {"name": "db9", "changed": False},
            {"name": "off", "changed": True},
        ]
    }
    assert mixed.plans == []
    result = mixed("guest", "adopt", "web1", "off", "--next-boot")
    assert "web1: has its RAM in a shared file from its next boot on." in result.stdout
    assert "off: has its RAM in a shared file as it boots." in result.stdout


def test_a_transient_guest_has_no_next_boot(mixed: Caller, definitions: Definitions) -> None:
    mixed.host = sampled.host(qemu=(OLD,), guests=(ordinary("web1"), ordinary("brief", persistent=False)))
    result = mixed("guest", "adopt", "web1", "brief", "--next-boot")
    assert (result.exit_code, definitions.asked) == (2, [])
    assert "brief: transient" in result.stderr


def test_both_ways_at_once_are_refused(mixed: Caller) -> None:
    assert mixed("guest", "adopt", "web1", "--next-boot", "--keep-definition").exit_code == 2


def test_a_report_tells_what_was_copied_and_what_kept(hostagent: Caller) -> None:
    def fill(writer: Writer) -> None:
        writer.begin("u1", "web1", method=Method.IN_PLACE_COPY)
        writer.measured("u1", "web1", pause_seconds=0.1, copied_bytes=10**9, copy_seconds=4.0, definition="no room")
        writer.end_guest("u1", "web1", Outcome.UPDATED)
        writer.end("u1", Outcome.UPDATED)

    hostagent.write(fill)
    (web1,) = hostagent.json("history", "u1")["updates"][0]["guests"]
    assert (web1["method"], web1["ram"], web1["definition"]) == ("in-place-copy", "copied", "no room")
    assert web1["phases"]["copy"] == 4.0
    assert "its next boot gives it RAM that has to be copied again: no room" in hostagent("history", "u1").stdout


def test_an_adoption_is_nothing_to_go_back_from(hostagent: Caller) -> None:
    def fill(writer: Writer) -> None:
        writer.updated("u1", "web1")
        writer.updated("u2", "web1", kind=OrderKind.ADOPTION)

    hostagent.write(fill)
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1", qemu=NEW),))
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1"))
    assert hostagent("rollback", "--yes").exit_code == 0
    assert hostagent.plans[0].undoes == "u1"


def test_copying_is_predicted_from_what_was_copied_here(hostagent: Caller) -> None:
    def fill(writer: Writer) -> None:
        writer.updated("u1", "db9", copied_bytes=2**30, copy_seconds=8.0)

    hostagent.write(fill)
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(ordinary("web1"),))
    (web1,) = hostagent.json("plan", "qemu", "--to", "10.0")["guests"]
    assert (web1["method"], web1["copied_bytes"], web1["predicted"]["copy_seconds"]) == ("in-place-copy", 2**28, 2.0)
    shown = " ".join(hostagent("plan", "qemu", "--to", "10.0").stdout.split())
    assert "RAM copied while it runs" in shown

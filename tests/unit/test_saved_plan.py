"""A plan in a file: what it holds, and when it does not hold any more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sampled
from called import KEPT, Caller, guest, with_private_ram
from journals import NEW, OLD

from hostagent import wiring
from hostagent.config import Config
from hostagent.errors import UsageError
from hostagent.facts import Destinations, Disk, GuestState, Host, QemuProcess, Version
from hostagent.planning.guest_policy import Policies
from hostagent.planning.saved_plan import SavedPlan

SAVE = ("plan", "qemu", "--to", "10.0", "--budget", "500ms", "--save")


def host(**changed: Any) -> Host:
    return sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), guest("db9")), **changed)


def saved(of: Host, *guests: str) -> SavedPlan:
    """As it comes back from a file."""
    return SavedPlan.read("a file", SavedPlan.of(of, NEW, guests, sampled.within(0.5)).written())


def with_web1(**changed: Any) -> Host:
    return replace(host(), guests=(guest("web1", **changed), guest("db9")))


# -- what it holds


def test_it_comes_back_as_it_was_written() -> None:
    plan = saved(host(), "web1")
    assert (plan.to, plan.guests, plan.budget_seconds) == (NEW.name, ("web1",), 0.5)
    assert plan.changes(host(), Policies()) == ()


def test_bytes_that_are_no_text() -> None:
    odd = with_web1(process=QemuProcess(1, 1, "qemu", exe_deleted=False, argv=("\udcff", "é")))
    assert saved(odd).changes(odd, Policies()) == ()
    assert saved(odd).changes(host(), Policies()) != ()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 2}', b"\xff", b'"' + b"[" * 100_000])
def test_a_file_that_is_no_plan(data: bytes) -> None:
    with pytest.raises(UsageError, match="save it again"):
        SavedPlan.read("a file", data)


# -- when it does not hold any more


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"state": GuestState.PAUSED_BY_OWNER}, "guest web1 state: running then, paused by its owner now"),
        ({"domain_id": 6}, "guest web1 domain_id: 5 then, 6 now"),
        ({"qemu": NEW}, "guest web1 qemu"),
        ({"job": "a job"}, "guest web1 job: none then, a job now"),
        ({"ram_files": ()}, "guest web1 ram_files"),
        ({"process": None}, "guest web1 process"),
        ({"definition": sampled.guest("tuned").definition}, "guest web1 definition"),
    ],
)
def test_a_guest_changed(changed: dict[str, Any], words: str) -> None:
    (first, *_) = saved(host()).changes(with_web1(**changed), Policies())
    assert first.startswith(words)


@pytest.mark.parametrize("changed", [{"boot_id": "c"}, {"libvirt": Version(11, 3)}, {"lock_manager": "lockd"}])
def test_the_host_changed(changed: dict[str, Any]) -> None:
    assert saved(host()).changes(host(**changed), Policies())[0].startswith(f"host {next(iter(changed))}")


def test_what_comes_and_goes_by_itself() -> None:
    assert saved(host()).changes(host(libvirt_clients=3), Policies()) == ()
    assert saved(host(), "db9").changes(with_web1(job="a job"), Policies()) == ()


def test_the_system_s_qemu_is_kept_once_somebody_runs_on_it() -> None:
    kept = replace(host(), qemu=(OLD, NEW, KEPT))
    assert saved(host(), "db9").changes(kept, Policies()) == saved(kept, "db9").changes(host(), Policies()) == ()
    on_kept = replace(kept, guests=(guest("web1", qemu=KEPT), guest("db9")))
    assert saved(on_kept).changes(replace(on_kept, qemu=(OLD, NEW)), Policies())


def test_a_guest_came_or_went() -> None:
    alone = replace(host(), guests=(guest("web1"),))
    assert saved(alone).changes(host(), Policies()) == ("guest db9: there now, not then",)
    assert saved(host(), "db9").changes(alone, Policies()) == ("guest db9: gone",)


def test_many_changes_are_counted() -> None:
    others = tuple(guest(f"g{number}", job="a job") for number in range(20))
    plain = tuple(guest(f"g{number}") for number in range(20))
    changes = saved(replace(host(), guests=plain)).changes(replace(host(), guests=others), Policies())
    assert (len(changes), changes[-1]) == (9, "and 12 more")


# -- by the command line


def test_saved_and_carried_out(hostagent: Caller, tmp_path: Path) -> None:
    path = tmp_path / "web1.plan"
    told = hostagent(*SAVE, str(path), "--guest", "web1").stdout
    assert f"hostagent update --plan {path}" in " ".join(told.split())
    assert path.stat().st_mode & 0o777 == 0o600
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1"))
    assert hostagent("update", "--plan", str(path), "--yes").exit_code == 0
    (plan,) = hostagent.plans
    assert [(planned.name, planned.budget_seconds) for planned in plan.to_update] == [("web1", 0.5)]


def test_refused_when_the_facts_have_changed(hostagent: Caller, tmp_path: Path) -> None:
    path = tmp_path / "all.plan"
    hostagent(*SAVE, str(path))
    hostagent.host = replace(hostagent.host, guests=(guest("web1", job="a backup"), guest("db9")))
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1"))
    result = hostagent("update", "--plan", str(path), "--yes")
    assert (result.exit_code, hostagent.plans) == (3, [])
    assert "guest web1 job: none then, a backup now" in result.stderr


def test_a_refused_plan_is_not_saved(hostagent: Caller, tmp_path: Path) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(with_private_ram("cache"),))
    assert hostagent(*SAVE, str(tmp_path / "p"), "--guest", "cache").exit_code == 3
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "words",
    [("update", "--yes"), ("plan", "--to", "10.0"), ("update", "qemu", "--plan", "PLAN")],
)
def test_words_that_are_missing_or_too_many(hostagent: Caller, tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "all.plan"
    hostagent(*SAVE, str(path))
    result = hostagent(*(str(path) if word == "PLAN" else word for word in words))
    assert (result.exit_code, hostagent.plans) == (2, [])


@pytest.mark.parametrize("content", [None, "no plan", json.dumps({"format": 1})])
def test_no_plan_there(hostagent: Caller, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "p"
    if content is not None:
        path.write_text(content)
    result = hostagent("update", "--plan", str(path), "--yes")
    assert result.exit_code == 2
    assert str(path) in result.stderr.replace("\n", "")


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether disks were to be copied, each time that peers were looked at."""
    looks: list[bool] = []

    def look(config: Config, host: Host) -> Host:
        looks.append(config.migrate.copy_storage)
        return replace(host, destinations=Destinations(copies_storage=config.migrate.copy_storage))

    monkeypatch.setattr(wiring, "with_peers", look)
    return looks


def test_that_disks_are_copied_is_part_of_it(hostagent: Caller, tmp_path: Path, copying: list[bool]) -> None:
    path = tmp_path / "the.plan"
    assert hostagent(*SAVE, str(path), "--copy-storage", "--guest", "web1").exit_code == 0
    assert set(copying) == {True}
    hostagent.updates_by(lambda writer, update: writer.updated(update, "web1"))
    assert hostagent("update", "--plan", str(path), "--yes").exit_code == 0
    assert set(copying) == {True}
    copying.clear()
    hostagent("plan", "qemu", "--to", "10.0")
    assert set(copying) == {False}
    copying.clear()
    hostagent("update", "qemu", "--to", "10.0", "--copy-storage", "--yes")
    assert set(copying) == {True}


def test_disks_of_guests_that_nobody_named_are_none_of_it() -> None:
    own, other = (Disk(f"uuid of {name}", "vda", f"/d/{name}", "raw", 5) for name in ("web1", "db9"))
    then = host(destinations=Destinations(copies_storage=True, disks=(own, other)))
    plan = saved(then, "web1")
    assert plan.copy_storage
    grown = replace(then, destinations=replace(then.destinations, disks=(own, replace(other, size=6))))
    assert plan.changes(grown, Policies()) == ()
    grown = replace(then, destinations=replace(then.destinations, disks=(replace(own, size=6), other)))
    assert plan.changes(grown, Policies()) != ()

"""The verbs that look (inspect, status, metrics, qemu list) and the rest that is small."""

from dataclasses import replace
from pathlib import Path

import pytest
import sampled
from called import KEPT, Caller, guest, shut_off, with_private_ram
from journals import NEW, OLD, Writer
from prometheus_client.parser import text_string_to_metric_families

from hostagent.cli import words
from hostagent.cli.common import Call, new_update_id
from hostagent.errors import Refused
from hostagent.facts import Guest, GuestState, QemuProcess
from hostagent.setup.setup_host import Report
from hostagent.setup.setup_tasks import Need
from hostagent.update.journal import Outcome
from hostagent.update.order import OrderKind

# -- inspect


def test_inspect_shows_host_guests_and_every_reason(hostagent: Caller) -> None:
    deleted = QemuProcess(100, 1, "/usr/bin/q", exe_deleted=True, argv=sampled.guest().process.argv)  # type: ignore[union-attr]
    hostagent.host = sampled.host(
        qemu=(OLD, NEW),
        guests=(
            guest("web1"),
            with_private_ram("cache"),
            shut_off("old"),
            guest("stale", qemu=None, process=deleted),
            guest("stuck", state=GuestState.PAUSED_OTHERWISE, state_reason="I/O error", job="a block job on vda"),
        ),
    )
    result = hostagent("inspect")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.rstrip() for line in reversed(result.stdout.splitlines()) if line}
    assert rows["web1"].endswith("yes")
    assert rows["cache"].endswith("no: 1 reason below")
    assert rows["old"].endswith("not running")
    assert "binary deleted" in rows["stale"]
    assert "paused (I/O error)" in result.stdout
    assert "found a block job on vda" in result.stdout
    assert result.stdout.count("cannot be updated in place:") == 3
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert not hostagent.state.exists()


def test_inspect_for_programs(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW, KEPT), guests=(guest("web1"), shut_off("old")))
    document = hostagent.json("inspect")
    assert [tree["version"] for tree in document["host"]["qemu"]] == ["7.2.22", "10.0.2", "7.2.22"]
    web1, old = document["guests"]
    assert (web1["in_place"], web1["qemu"]["exe_deleted"]) == (
        {"possible": True, "technique": "handover", "copies_ram": False, "blockers": []},
        False,
    )
    assert web1["ram"] == {"bytes": guest("web1").definition.memory, "backing": "shared file"}
    assert (old["in_place"]["possible"], old["qemu"]) == (False, None)


def test_inspect_for_programs_says_what_the_table_says_of_a_host_that_is_against_it(hostagent: Caller) -> None:
    hostagent.host = sampled.host(guests=(guest("web1"),), lock_manager="sanlock")
    assert "no: see the host" in hostagent("inspect").stdout
    (web1,) = hostagent.json("inspect")["guests"]
    assert web1["in_place"]["possible"] is False


def test_inspect_of_one_guest(hostagent: Caller) -> None:
    assert [seen["name"] for seen in hostagent.json("inspect", "--guest", "db9")["guests"]] == ["db9"]
    assert hostagent("inspect", "--guest", "nobody").exit_code == 2


def test_a_host_without_guests(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(), guests=())
    assert "No guests on this host." in hostagent("inspect").stdout


# -- status


def without_libvirt(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> Caller:
    def host(_: Call) -> None:
        raise Refused("listing guests", expected="libvirt to answer", found="nothing")

    monkeypatch.setattr(Call, "host", host)
    return hostagent


def test_status_of_a_host_that_never_saw_an_update(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    result = without_libvirt(hostagent, monkeypatch)("status")
    assert (result.exit_code, result.stdout) == (0, "No update was made on this host yet.\n")
    assert not hostagent.state.exists()


def test_status_shows_the_last_update_and_with_all_every_one(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(writer: Writer) -> None:
        writer.updated("u1", "web1")
        writer.updated("u2-rehearsal", "hostagent-rehearsal-ab", kind=OrderKind.REHEARSAL)
        writer.updated("u2", "db9")

    hostagent.write(fill)
    result = without_libvirt(hostagent, monkeypatch)("status")
    assert result.exit_code == 0
    assert "update u2: qemu to 10.0.2, begun 2026-11-22 05:40:00 UTC, updated after" in result.stdout
    assert "u1" not in result.stdout
    assert result.stdout.endswith("Nothing is open.\n")
    everything = hostagent("status", "--all").stdout
    assert all(f"{update}: qemu" in everything for update in ("update u1", "rehearsal u2-rehearsal", "update u2"))
    assert [update["id"] for update in hostagent.json("status", "--all")["updates"]] == ["u1", "u2-rehearsal", "u2"]


def test_status_of_something_open_says_what_to_run(hostagent: Caller) -> None:
    hostagent.write(lambda writer: writer.begin("u1", "web1"))
    result = hostagent("status")
    assert result.exit_code == 5
    assert "hostagent recover" in result.stdout
    assert hostagent.json("status", code=5)["updates"][0]["outcome"] == "open"


def test_status_of_an_update_at_work_names_it(hostagent: Caller) -> None:
    hostagent.write(lambda writer: writer.begin("u1", "web1"))
    lock = hostagent.held_by_somebody("update qemu")
    result = hostagent("status")
    assert result.exit_code == 0
    assert "At work: 'update qemu' by process" in result.stdout
    assert hostagent.json("status")["running"].startswith("'update qemu'")
    lock.release()
    assert hostagent("status").exit_code == 5


def test_a_guest_that_needs_a_person_is_shown_with_its_reason(hostagent: Caller) -> None:
    def fill(writer: Writer) -> None:
        writer.begin("u1", "web1")
        writer.end_guest("u1", "web1", Outcome.NEEDS_OPERATOR, "undoing step start: no (hint: virsh resume web1)")

    hostagent.write(fill)
    result = hostagent("status")
    assert result.exit_code == 5
    assert "web1: undoing step start: no (hint: virsh resume web1)" in result.stdout


# -- recover


def test_recover_with_nothing_open(hostagent: Caller) -> None:
    result = hostagent("recover")
    assert (result.exit_code, result.stdout) == (0, "Nothing was open.\n")


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.ROLLED_BACK, 0), (Outcome.NEEDS_OPERATOR, 5)])
def test_recover_tells_what_it_closed(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, code: int
) -> None:
    writer = Writer()
    writer.begin("u1", "web1")
    hostagent.write(lambda journal: journal.begin("u1", "web1"))

    def recover(*_: object, tell: object, **__: object) -> object:
        tell("uuid of web1", "start", "undone")  # type: ignore[operator]
        writer.end_guest("u1", "web1", outcome, "it was cut off")
        if code == 0:
            writer.end("u1", outcome)
        return writer.records()

    monkeypatch.setattr("hostagent.session.recover", recover)
    result = hostagent("recover")
    assert result.exit_code == code
    assert "web1: it was cut off" in result.stdout
    assert result.stderr == "web1: undoing: starting the new QEMU\n"


# -- metrics, qemu list, setup


def test_metrics_prints_the_exposition(hostagent: Caller) -> None:
    result = hostagent("metrics")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "hostagent_build_info" in result.stdout
    assert 'hostagent_guests{state="running"} 2.0\n' in result.stdout
    assert not hostagent.state.exists()
    hostagent.write(lambda writer: writer.updated("u1", "web1"))
    text = hostagent("metrics").stdout
    assert "hostagent_guest_last_pause_seconds" in {family.name for family in text_string_to_metric_families(text)}
    assert hostagent.json("metrics")["exposition"] == text


def test_metrics_without_libvirt_are_those_of_the_journal_and_say_so(hostagent: Caller) -> None:
    hostagent.libvirt_fails = Refused("listing guests", expected="libvirt to answer", found="nothing")
    hostagent.write(lambda writer: writer.updated("u1", "web1"))
    result = hostagent("metrics")
    assert result.exit_code == 0
    assert 'hostagent_guest_last_pause_seconds{guest="web1",method="in-place"}' in result.stdout
    assert "hostagent_guests{" not in result.stdout
    assert result.stderr == (
        "without what only a look at the host shows (guests, components, blockers): "
        "listing guests: expected libvirt to answer, found nothing\n"
    )


def test_metrics_can_keep_names_of_guests_to_themselves(hostagent: Caller) -> None:
    hostagent.write(lambda writer: writer.updated("u1", "web1"))
    with hostagent.settings.open("a") as settings:
        settings.write("[metrics]\nguest_names = false\n")
    text = hostagent("metrics").stdout
    assert 'hostagent_guest_last_pause_seconds{guest="",method="in-place"}' in text
    assert "web1" not in text


def test_metrics_for_node_exporter_are_one_whole_file_that_it_can_read(hostagent: Caller, tmp_path: Path) -> None:
    path = tmp_path / "hostagent.prom"
    hostagent.write(lambda writer: writer.updated("u1", "web1"))
    for _ in range(2):
        result = hostagent("metrics", "--textfile", str(path))
        assert (result.exit_code, result.stdout) == (0, f"Written: {path}\n")
        assert path.read_text() == hostagent("metrics").stdout
        assert path.stat().st_mode & 0o7777 == 0o644
    assert [file.name for file in tmp_path.glob("*.prom*")] == ["hostagent.prom"]
    assert hostagent.json("metrics", "--textfile", str(path)) == {"textfile": str(path)}


@pytest.mark.parametrize("name", ["hostagent.txt", ".prom", "a b.prom", "x\n.prom", ".hidden.prom"])
def test_metrics_go_into_no_file_that_node_exporter_does_not_read(hostagent: Caller, tmp_path: Path, name: str) -> None:
    result = hostagent("metrics", "--textfile", str(tmp_path / name))
    assert result.exit_code == 2
    assert "expected a file named like hostagent.prom" in result.stderr
    assert not (tmp_path / name).exists()


def test_metrics_make_no_folder_and_follow_no_link(hostagent: Caller, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "folder").symlink_to(target)
    (target / "hostagent.prom").symlink_to(tmp_path / "stolen")
    (target / "folder.prom").mkdir()
    for path in ("nowhere/hostagent.prom", "folder/hostagent.prom", "target/hostagent.prom", "target/folder.prom"):
        result = hostagent("metrics", "--textfile", str(tmp_path / path))
        assert result.exit_code == 2, path
        assert "expected a" in result.stderr
    assert not (tmp_path / "stolen").exists()
    assert sorted(file.name for file in target.iterdir()) == ["folder.prom", "hostagent.prom"]


def test_a_link_where_the_file_is_first_written_is_not_followed(hostagent: Caller, tmp_path: Path) -> None:
    (tmp_path / ".hostagent.prom.hostagent").symlink_to(tmp_path / "stolen")
    assert hostagent("metrics", "--textfile", str(tmp_path / "hostagent.prom")).exit_code == 0
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path / "hostagent.prom").is_symlink()


def test_qemu_list_says_how_many_guests_run_on_each(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.wiring.trees_of", lambda _: (OLD, NEW))
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"), guest("db9", qemu=NEW), shut_off("old")))
    assert [tree["guests"] for tree in hostagent.json("qemu", "list")["qemu"]] == [1, 1]
    without_libvirt(hostagent, monkeypatch)
    assert [tree["guests"] for tree in hostagent.json("qemu", "list")["qemu"]] == [None, None]
    assert "?" in hostagent("qemu", "list").stdout


def test_qemu_add_of_nothing_that_is_there(hostagent: Caller, tmp_path: Path) -> None:
    result = hostagent("qemu", "add", str(tmp_path / "none.deb"))
    assert result.exit_code == 2
    assert "no such file" in result.stderr


DEFINED = replace(shut_off("old"), definition=replace(sampled.guest().definition, emulator=NEW.emulator))


@pytest.mark.parametrize("user", [guest("web1", qemu=NEW), DEFINED], ids=["runs", "is defined"])
def test_qemu_remove_refuses_what_a_guest_uses(hostagent: Caller, monkeypatch: pytest.MonkeyPatch, user: Guest) -> None:
    monkeypatch.setattr("hostagent.wiring.trees_of", lambda _: (OLD, NEW))
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(user, guest("db9")))
    result = hostagent("qemu", "remove", NEW.name)
    assert result.exit_code == 3
    assert f"found {user.name}" in result.stderr


def test_qemu_remove_refuses_the_way_back_of_a_guest_that_runs_on_the_same_build(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostagent.wiring.trees_of", lambda _: (OLD, NEW, KEPT))
    result = hostagent("qemu", "remove", "kept")
    assert result.exit_code == 3
    assert f"found web1 runs on this build ({OLD.emulator})" in result.stderr


# -- the QEMU that guests run on is kept as soon as it is seen


@pytest.mark.parametrize("words_", [("inspect",), ("plan", "qemu", "--to", "10.0")])
def test_the_system_s_own_is_kept_once_guests_are_seen_on_it(hostagent: Caller, words_: tuple[str, ...]) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"),))
    first, second = hostagent(*words_), hostagent(*words_)
    assert first.exit_code == second.exit_code == 0
    assert first.stderr == "keeping QEMU 7.2.22 beside the system's own, for a way back to it ...\n"
    assert second.stderr == ""
    assert hostagent.host.qemu == (OLD, NEW, KEPT)


def test_it_is_not_kept_for_nobody(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1", qemu=NEW), shut_off("old")))
    assert hostagent("inspect").stderr == ""
    assert hostagent.host.qemu == (OLD, NEW)


def test_what_cannot_be_kept_is_said_and_keeps_nobody_from_looking(hostagent: Caller) -> None:
    hostagent.host = sampled.host(qemu=(OLD, NEW), guests=(guest("web1"),))
    hostagent.keeping_fails = Refused("keeping /usr/bin/qemu", expected="a package", found="none")
    result = hostagent("inspect")
    assert (result.exit_code, "web1" in result.stdout) == (0, True)
    assert "it is not kept: keeping /usr/bin/qemu: expected a package, found none" in result.stderr


NEEDS = (
    Need("fstab", "after a reboot", satisfied=True),
    Need("ram", "guests' RAM", satisfied=False, change="mount a tmpfs", in_the_way="files there"),
)


def test_setup_check_changes_nothing_and_tells_by_its_exit_code(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostagent.cli.setup._tasks", lambda *_, **__: ())
    monkeypatch.setattr("hostagent.setup.setup_host.check", lambda _: NEEDS)
    result = hostagent("setup", "--check")
    assert result.exit_code == 3
    assert "mount a tmpfs" in result.stdout
    assert "in the way is: files there" in result.stdout
    assert [need["satisfied"] for need in hostagent.json("setup", "--check", code=3)["needs"]] == [True, False]
    assert not hostagent.state.exists()
    monkeypatch.setattr("hostagent.setup.setup_host.check", lambda _: NEEDS[:1])
    for words_ in (("setup", "--check"), ("setup",)):
        result = hostagent(*words_)
        assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "Everything is in place.")


def test_setup_asks_then_does(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def apply(_: object) -> Report:
        done.append("applied")
        return Report(("mount a tmpfs",), restart_libvirtd=True)

    monkeypatch.setattr("hostagent.cli.setup._tasks", lambda *_, **__: ())
    monkeypatch.setattr("hostagent.setup.setup_host.check", lambda _: NEEDS)
    monkeypatch.setattr("hostagent.setup.setup_host.apply", apply)
    assert (hostagent("setup").exit_code, done) == (2, [])
    result = hostagent("setup", "--yes")
    assert (result.exit_code, done) == (0, ["applied"])
    assert "restart libvirtd" in result.stdout
    document = hostagent.json("setup", "--yes")
    assert (document["done"], document["restart_libvirtd"]) == (["mount a tmpfs"], True)


def test_setup_with_guests_it_cannot_ask_about_is_refused(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.setup.setup_host.wanted_on_this_host", lambda *_: None)
    monkeypatch.setattr("hostagent.setup.setup_host.tasks", lambda *_: ())
    without_libvirt(hostagent, monkeypatch)
    assert hostagent("setup", "--check").exit_code == 0  # libvirt was never started here
    run = hostagent.config().paths.libvirt_run
    run.mkdir()
    (run / "web1.pid").write_text("1")
    result = hostagent("setup", "--check")
    assert result.exit_code == 3
    assert "start libvirt's daemon first" in result.stderr


def test_setup_is_not_undone_under_what_is_still_open(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def left_open(writer: Writer) -> None:
        writer.begin("u1", "web1")
        writer.end_guest("u1", "web1", Outcome.NEEDS_OPERATOR, "it is held, with its RAM")

    hostagent.write(left_open)
    records = Writer()
    left_open(records)
    monkeypatch.setattr("hostagent.session.recover", lambda *_, **__: records.records())
    monkeypatch.setattr("hostagent.setup.setup_host.undo", lambda _: pytest.fail("it was undone"))
    result = hostagent("setup", "--undo", "--yes")
    assert result.exit_code == 5
    assert "update u1 is still open: web1: it is held, with its RAM" in result.stderr


@pytest.mark.parametrize("reserved", [True, False])
def test_an_undo_says_when_the_host_must_be_rebooted(
    hostagent: Caller, monkeypatch: pytest.MonkeyPatch, reserved: bool
) -> None:
    monkeypatch.setattr("hostagent.setup.setup_host.wanted_on_this_host", lambda *_: None)
    monkeypatch.setattr("hostagent.setup.setup_host.tasks_to_undo", lambda *_: ())
    monkeypatch.setattr("hostagent.setup.setup_host.undo", lambda _: Report(("removed it",), restart_libvirtd=True))
    monkeypatch.setattr("hostagent.cli.setup.gives_back", lambda *_: reserved)
    result = hostagent("setup", "--undo", "--yes")
    assert (result.exit_code, "done: removed it" in result.stdout) == (0, True)
    assert "Next: restart libvirtd" in result.stdout
    assert ("the kernel takes back the memory" in result.stdout) is reserved
    assert hostagent.json("setup", "--undo", "--yes")["reboot"] is reserved


# -- figures


@pytest.mark.parametrize(
    ("seconds", "read"),
    [
        (None, "–"),
        (0.0182, "18.2 ms"),
        (0.3876, "388 ms"),
        (1.0, "1 s"),
        (1.256, "1.26 s"),
        (12.345, "12.3 s"),
        (30.0, "30 s"),
        (200.0, "3 min 20 s"),
    ],
)
def test_durations(seconds: float | None, read: str) -> None:
    assert words.duration(seconds) == read


@pytest.mark.parametrize(
    ("seconds", "bound", "read"),
    [
        (None, None, "–"),
        (0.0003, None, "+0.3 ms"),
        (-0.0181, 0.0004, "-18.1 ±0.4 ms"),
        (-0.56, None, "-560 ms"),
        (3600.0, 0.01, "+3600 ±0.0 s"),
    ],
)
def test_offsets(seconds: float | None, bound: float | None, read: str) -> None:
    assert words.offset(seconds, bound) == read


@pytest.mark.parametrize(
    ("count", "read"), [(512 << 20, "512 MiB"), (3 << 29, "1.5 GiB"), (1, "1 B"), (1 << 41, "2 TiB")]
)
def test_sizes(count: int, read: str) -> None:
    assert words.size(count) == read


def test_update_ids_sort_by_time_and_are_never_the_same() -> None:
    ids = [new_update_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert [name[:15] for name in ids] == sorted(name[:15] for name in ids)

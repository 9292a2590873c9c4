"""Looks that keep what they know see the host as one that begins anew does, whatever becomes of the host meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import MEASURED, NEW, OLD, Writer
from sampled import ALL, argv, xml

from hostagent.arguments.command_line import CommandLine, blockers, judged
from hostagent.components import libvirtd
from hostagent.facts import Guest, QemuProcess, QemuTree, RamRoom, Version
from hostagent.file_identity import identity
from hostagent.hypervisor.guest_process import Builds
from hostagent.hypervisor.understood import Readings, Understood, understood
from hostagent.observed import observe
from hostagent.plan import Technique
from hostagent.planning.guest_policy import Policies
from hostagent.planning.prediction import Past, predict, predict_migration
from hostagent.trees import qemu_trees
from hostagent.update.journal import Entry, Kind, Outcome, SqliteJournal, fold
from hostagent.update.journal_past import JournalPast
from hostagent.update.journal_tail import JournalTail
from hostagent.update.report import past_of

KINDS = st.sampled_from(ALL)
# Each may have the definition of one sample and the arguments of another, or not run; and come, go, and change.
GUESTS = st.dictionaries(st.sampled_from("abc"), st.tuples(KINDS, KINDS, st.booleans(), st.integers(0, 2)), max_size=3)


def read(readings: Readings, uuid: str, of: tuple[str, str, bool, int]) -> Understood:
    definition, arguments, runs, vhosts = of
    fresh = tuple(argv(arguments)) if runs else ()
    return readings.of(uuid, xml(definition), fresh, vhosts)


@cache
def anew(of: tuple[str, str, bool, int]) -> Understood:
    return understood(xml(of[0]), tuple(argv(of[1])) if of[2] else (), of[3])


@settings(max_examples=60, deadline=None)
@given(st.lists(GUESTS, min_size=2, max_size=4))
def test_what_is_known_of_guests_is_what_reading_them_anew_says(
    looks: Sequence[dict[str, tuple[str, str, bool, int]]],
) -> None:
    readings = Readings()
    for guests in looks:
        for uuid, of in guests.items():
            assert read(readings, uuid, of) == anew(of)
        readings.keep(guests.keys())


def test_a_guest_is_read_again_only_when_something_of_it_has_changed() -> None:
    asked: list[tuple[str, int]] = []

    def reads(live_xml: str, words: tuple[str, ...], vhosts: int) -> Understood:
        asked.append((live_xml[:20], len(words)))
        return understood(live_xml, words, vhosts)

    readings = Readings(reads)
    same = ("q35-plain", "q35-plain", True, 1)
    for _ in range(3):
        read(readings, "a", same)
    assert len(asked) == 1
    for changed in (("q35-2cpu", *same[1:]), same, (same[0], "q35-2cpu", True, 1), (*same[:2], True, 0)):
        read(readings, "a", changed)
    assert len(asked) == 5
    readings.keep(())
    read(readings, "a", (*same[:2], True, 0))
    assert len(asked) == 6


@pytest.mark.parametrize("name", ALL)
def test_a_list_is_judged_as_its_parts_are(name: str) -> None:
    line = CommandLine.parse(argv(name))
    for _ in range(2):
        found = judged(tuple(argv(name)))
        assert found.blockers == blockers(line)
        assert found.ram_backends == line.ram_backends()
        assert found.nameless_bytes == sum(ram.size for ram in line.nameless_ram())


def guest_of(uuid: str, kind: str, changed: int) -> Guest:
    one = replace(sampled.guest(kind), name=uuid, uuid=uuid)
    return replace(one, job="a domain job" if changed == 1 else "", memory_room=100 if changed == 2 else None)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.tuples(KINDS, st.integers(0, 2)), max_size=3),
            st.sampled_from([0, 1 << 30, 64 << 30]),
        ),
        min_size=2,
        max_size=3,
    )
)
def test_what_is_seen_is_what_somebody_sees_who_knows_nothing(
    looks: Sequence[tuple[dict[str, tuple[str, int]], int]],
) -> None:
    for guests, room in looks:
        made = tuple(guest_of(uuid, *of) for uuid, of in guests.items())
        host = sampled.host(guests=made, ram_room=RamRoom("tmpfs", room, room))
        known = observe(host, [], Policies(), Past(), at=0.0)
        judged.cache_clear()
        assert observe(host, [], Policies(), Past(), at=0.0) == known


def test_a_build_that_is_gone_is_asked_for_again_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("hostagent.hypervisor.guest_process._build_of", lambda one: asked.append(one.pid) or "1:7.2")
    tree = QemuTree("kept", Version(7, 2), "1:7.2", "/q")
    process = QemuProcess(7, 1, "/usr/bin/q", exe_deleted=True, argv=("q",))
    builds = Builds()
    for _ in range(2):
        assert builds.tree_of(process, (tree,)) == tree
    builds.keep({process, None})
    builds.tree_of(process, (tree,))
    assert asked == [7]
    builds.keep(())
    builds.tree_of(process, (tree,))
    assert asked == [7, 7]


# -- programs ------------------------------------------------------------------------------------------------


def program(path: Path, says: str) -> None:
    """Another one in its place, as a package manager has it."""
    beside = path.with_name("beside")
    beside.write_text(f"#!/bin/sh\necho x >>{path.parent}/asked\necho '{says}'\n")
    beside.chmod(0o755)
    beside.replace(path)


def test_an_emulator_is_asked_again_when_it_is_another_file(tmp_path: Path) -> None:
    emulator = tmp_path / "qemu"
    for version in ("7.2.1", "10.0.2", "7.2.1"):
        program(emulator, f"QEMU emulator version {version} (Debian 1:{version}-1)")
        for _ in range(2):
            (tree,) = qemu_trees.list_trees(tmp_path / "state", emulator)
            assert (str(tree.version), tree.package) == (version, f"1:{version}-1")
    assert (tmp_path / "asked").read_text() == "x\n" * 3
    emulator.unlink()
    assert qemu_trees.list_trees(tmp_path / "state", emulator) == ()


def test_a_daemon_is_asked_again_when_it_is_another_file(tmp_path: Path) -> None:
    daemon = tmp_path / "libvirtd"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "exe").symlink_to(daemon)
    for version in ("9.0.0", "11.3.0"):
        program(daemon, f"libvirtd (libvirt) {version}")
        for _ in range(2):
            assert libvirtd.look(Version(9, 0), 7, tmp_path).installed == version
    assert (tmp_path / "asked").read_text() == "x\n" * 2


def test_a_file_that_is_written_to_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("a")
    before = identity(path)
    assert identity(path) == before
    path.write_text("bb")
    assert identity(path) != before


# -- what was measured ---------------------------------------------------------------------------------------

UPDATES = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True),
        st.floats(0.01, 60.0),
        st.sampled_from([Outcome.UPDATED, Outcome.ROLLED_BACK, None]),  # None: it stays open
    ),
    max_size=14,
)


def predictions(past: Past) -> list[object]:
    """All that anybody asks of a past."""
    guests = [f"uuid of {name}" for name in "abcdx"]
    return [
        *(predict(uuid, past, 1 << 30, way) for uuid in guests for way in Technique),
        *(predict_migration(uuid, past) for uuid in guests),
        past.swap_seconds("kernel", 1.0),
    ]


@settings(max_examples=25, deadline=None)
@given(UPDATES, st.integers(1, 3))
def test_a_past_that_is_read_on_predicts_what_the_whole_journal_does(
    updates: Sequence[tuple[list[str], float, Outcome | None]], every: int
) -> None:
    with TemporaryDirectory() as folder:
        path, moments = Path(folder) / "journal.sqlite", count(1000)
        journal = SqliteJournal(path, "boot", lambda: float(next(moments)))
        past, written = JournalPast(JournalTail(path, rows_at_once=3)), 0
        for number, (names, pause, outcome) in enumerate(updates):
            writer = Writer()
            writer.begin(f"u{number}", *names, to=NEW if number % 2 else OLD)
            for name in names:
                writer.measured(
                    f"u{number}", name, **{**MEASURED, "pause_seconds": pause, "copied_bytes": 9, "copy_seconds": pause}
                )
                ended = {"outcome": Outcome.UPDATED, "reason": "", "kind": ""}
                writer.append(f"u{number}", Entry(Kind.GUEST_ENDED, f"uuid of {name}", body=ended))
            if outcome is not None:
                writer.append(f"u{number}", Entry(Kind.UPDATE_ENDED, body={"outcome": outcome, "reason": ""}))
            for row in writer.rows:
                journal.append(row.update, row.entry)
                written += 1
                if written % every == 0:
                    past.past()
        open_last = sorted(fold(journal.rows()), key=lambda update: update.is_open)
        assert predictions(past.past()) == predictions(past_of(open_last))
        journal.close()

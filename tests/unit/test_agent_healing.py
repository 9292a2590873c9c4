"""The service recovers what nobody sees to: at once, and again now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents import KeptLog, MadeUpWork, MadeUpWorks
from journals import Writer

from hostagent.agent.healing import AGAIN_LIMIT, AGAIN_SECONDS, Healing
from hostagent.agent.journal_watch import JournalWatch
from hostagent.agent.lane import Lane
from hostagent.agent.tail import Tail
from hostagent.errors import ExitCode, Failed
from hostagent.update.host_lock import HostLock
from hostagent.update.journal import Entry, Kind, Outcome, SqliteJournal

U1, U2 = frozenset({"u1"}), frozenset({"u1", "u2"})


def test_what_is_open_is_tried_at_once_and_again_later() -> None:
    healing = Healing()
    assert not healing.is_due(frozenset(), 0.0)
    assert healing.is_due(U1, 0.0)
    healing.tried(U1, 10.0)
    assert not healing.is_due(U1, 39.0)
    assert healing.is_due(U1, 10.0 + AGAIN_SECONDS)
    healing.tried(U1, 40.0)
    assert not healing.is_due(U1, 99.0)
    assert healing.is_due(U1, 40.0 + 2 * AGAIN_SECONDS)


def test_it_is_tried_less_and_less_but_never_given_up() -> None:
    healing = Healing()
    for _ in range(20):
        healing.tried(U1, 0.0)
    assert not healing.is_due(U1, AGAIN_LIMIT - 1)
    assert healing.is_due(U1, AGAIN_LIMIT)


def test_another_one_is_tried_at_once() -> None:
    healing = Healing()
    healing.tried(U1, 0.0)
    assert healing.is_due(U2, 1.0)


def test_a_libvirt_that_is_back_is_reason_to_try() -> None:
    healing = Healing()
    healing.tried(U1, 0.0)
    healing.try_soon()
    assert healing.is_due(U1, 1.0)


def test_once_all_is_closed_it_begins_anew() -> None:
    healing = Healing()
    for _ in range(5):
        healing.tried(U1, 0.0)
    assert not healing.is_due(frozenset(), 1.0)
    assert healing.is_due(U1, 2.0)


@dataclass
class Watched:
    """A journal with an update that is open, and what watches it."""

    path: Path
    now: float = 0.0

    def __post_init__(self) -> None:
        writer = Writer()
        writer.begin("u1", "web1")
        writer.save(self.path / "journal.sqlite")
        self.log, self.works = KeptLog(), MadeUpWorks()
        self.lock = HostLock.at(self.path / "lock")

    def watch(self) -> JournalWatch:
        tail, lock = Tail(self.path / "journal.sqlite"), HostLock.at(self.path / "lock")
        works = self.works
        return JournalWatch(self.log, tail, lock, works, Lane("journal"), lambda: self.now)  # type: ignore[arg-type]

    def closes(self, _words: Sequence[str]) -> MadeUpWork:
        """A recovery that goes well."""
        journal = SqliteJournal(self.path / "journal.sqlite", "boot", lambda: 1.0)
        journal.append("u1", Entry(Kind.GUEST_ENDED, "uuid of web1", body={"outcome": Outcome.ROLLED_BACK}))
        journal.append("u1", Entry(Kind.UPDATE_ENDED, body={"outcome": Outcome.ROLLED_BACK}))
        journal.close()
        return MadeUpWork(_words)


def run(path: Path, course: Callable[[Watched], Coroutine[None, None, None]]) -> KeptLog:
    watched = Watched(path)
    asyncio.run(course(watched))
    return watched.log


def test_what_a_crash_left_is_recovered_and_told(tmp_path: Path) -> None:
    async def course(there: Watched) -> None:
        there.works.does = there.closes
        watch = there.watch()
        await watch.tick()
        assert watch.is_recovering
        assert await watch.recovered(60.0)
        assert there.works.started == [("recover", "--json")]
        await watch.tick()
        assert not watch.is_recovering and watch.open == {}

    log = run(tmp_path, course)
    assert log.names() == ["update is open", "recovering", "guest ended", "update ended", "recovered"]
    assert log.of("guest ended")[0]["guest"] == "web1"


def test_who_is_at_work_is_waited_for(tmp_path: Path) -> None:
    async def course(there: Watched) -> None:
        there.lock.take("update qemu", 1.0)
        there.works.does = there.closes
        watch = there.watch()
        await watch.tick()
        assert not watch.is_recovering
        assert await watch.recovered(60.0)
        assert watch.update_of("uuid of web1") == "u1"
        there.lock.release()
        await watch.tick()
        assert watch.is_recovering
        await watch.recovered(60.0)

    log = run(tmp_path, course)
    assert "'update qemu' by process" in str(log.of("waiting for who is at work")[0]["at_work"])
    assert log.names()[-1] == "recovered"


def test_what_stays_open_is_an_error_and_is_tried_again(tmp_path: Path) -> None:
    async def course(there: Watched) -> None:
        there.works.does = lambda words: MadeUpWork(words, "first\nguest web1: both\n", ExitCode.NEEDS_OPERATOR)
        watch = there.watch()
        await watch.tick()
        await watch.recovered(60.0)
        await watch.tick()
        assert not watch.is_recovering
        there.now = AGAIN_SECONDS
        await watch.tick()
        assert watch.is_recovering
        await watch.recovered(60.0)

    log = run(tmp_path, course)
    first, second = log.of("not recovered")
    assert first == second
    assert (first["said"], first["exit_code"], first["level"]) == ("guest web1: both", 5, "error")


def test_somebody_who_was_faster_is_no_error(tmp_path: Path) -> None:
    async def course(there: Watched) -> None:
        there.works.does = lambda words: MadeUpWork(words, "somebody has it", ExitCode.REFUSED)
        watch = there.watch()
        await watch.tick()
        await watch.recovered(60.0)
        await watch.tick()
        assert not watch.is_recovering

    assert run(tmp_path, course).of("not recovered") == []


def test_a_recovery_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    def fails(_: Sequence[str]) -> MadeUpWork:
        raise Failed("starting it", found="no memory")

    async def course(there: Watched) -> None:
        there.works.does = fails
        watch = there.watch()
        await watch.tick()
        await watch.recovered(60.0)

    assert run(tmp_path, course).of("not recovered")[0]["said"] == "starting it: no memory"


def test_a_verb_that_runs_is_not_disturbed(tmp_path: Path) -> None:
    async def course(there: Watched) -> None:
        there.works.changing = MadeUpWork(("update",))
        watch = there.watch()
        await watch.tick()
        assert not watch.is_recovering

    run(tmp_path, course)


def test_a_journal_that_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    async def course(there: Watched) -> None:
        for path in there.path.glob("journal.sqlite*"):
            path.unlink()
        (there.path / "journal.sqlite").write_bytes(b"no journal" * 1000)
        watch = there.watch()
        for _ in range(2):
            await watch.tick()
        assert "journal.sqlite" in watch.fault

    assert run(tmp_path, course).names() == ["journal cannot be read"]


def test_a_lane_hands_on_errors_and_says_how_long_it_is_at_it() -> None:
    async def course() -> None:
        lane = Lane("x")
        assert await lane.do(lambda: 5) == 5
        assert lane.busy_seconds() == 0.0
        assert await lane.do(lane.busy_seconds) > 0.0
        try:
            await lane.do(lambda: 1 // 0)
        except ZeroDivisionError:
            return
        raise AssertionError("expected its error")

    asyncio.run(course())

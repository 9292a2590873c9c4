"""Verbs that the service runs: said piece by piece, bounded, one that changes something at a time."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostagent.agent.backlog import Backlog
from hostagent.agent.launching import AsChild, AsUnit
from hostagent.agent.work import Chunk, Limits, Stream, Work, Works
from hostagent.errors import ExitCode, Failed, Refused
from hostagent.processes import WITH_US


@dataclass(frozen=True)
class _Python:
    """Words are a program of Python's, and its arguments."""

    def reading(self, words: Sequence[str]) -> Sequence[str]:
        return (sys.executable, "-ISc", *words)

    def changing(self, words: Sequence[str], _environment: Mapping[str, str]) -> Sequence[str]:
        return self.reading(words)


def works(folder: Path, **limits: float) -> Works:
    return Works(_Python(), folder / "given", limits=Limits(**limits))  # type: ignore[arg-type]


async def said(work: Work) -> dict[Stream, str]:
    found = {Stream.OUT: "", Stream.ERR: ""}
    async for chunk in work:
        found[chunk.stream] += chunk.text
    return found


def test_it_is_heard_on_both_streams_and_ends_with_its_code(tmp_path: Path) -> None:
    async def run() -> None:
        program = "import sys; print('wählt'); print('aside', file=sys.stderr); sys.exit(5)"
        work = await works(tmp_path).start([program], changes=False)
        assert await said(work) == {Stream.OUT: "wählt\n", Stream.ERR: "aside\n"}
        assert await work.exit_code() == ExitCode.NEEDS_OPERATOR

    asyncio.run(run())


def test_an_end_by_a_signal_is_told_as_a_shell_does(tmp_path: Path) -> None:
    async def run() -> None:
        work = await works(tmp_path).start(["import os; os.kill(os.getpid(), 9)"], changes=False)
        assert await work.exit_code() == ExitCode.SIGNAL + 9

    asyncio.run(run())


def test_one_at_a_time_changes_something(tmp_path: Path) -> None:
    async def run() -> None:
        all_of_them = works(tmp_path)
        first = await all_of_them.start(["input()"], changes=True)
        with pytest.raises(Refused, match="at work"):
            await all_of_them.start(["pass"], changes=True)
        assert all_of_them.changing is first
        looking = await all_of_them.start(["pass"], changes=False)
        assert await looking.exit_code() == 0
        await first.exit_code()
        assert all_of_them.changing is None
        second = await all_of_them.start(["pass"], changes=True)
        assert await second.exit_code() == 0

    asyncio.run(run())


def test_two_that_begin_at_the_same_moment_are_one_too_many(tmp_path: Path) -> None:
    async def run() -> None:
        all_of_them = works(tmp_path)
        begun = [all_of_them.start(["pass"], changes=True) for _ in range(2)]
        found = await asyncio.gather(*begun, return_exceptions=True)
        assert sorted(type(one) for one in found if isinstance(one, Refused)) == [Refused]

    asyncio.run(run())


def test_few_look_side_by_side(tmp_path: Path) -> None:
    async def run() -> None:
        all_of_them = works(tmp_path, side_by_side=1, turn_seconds=0.05)
        first = await all_of_them.start(["import time; time.sleep(600)"], changes=False)
        with pytest.raises(Refused, match=r"a turn within 0\.05 s"):
            await all_of_them.start(["pass"], changes=False)
        await first.leave()
        second = await all_of_them.start(["pass"], changes=False)
        assert await second.exit_code() == 0

    asyncio.run(run())


def test_what_only_looks_ends_with_who_asked(tmp_path: Path) -> None:
    async def run() -> None:
        async with await works(tmp_path).start(["import time; time.sleep(600)"], changes=False) as work:
            pass
        assert await work.exit_code() == ExitCode.SIGNAL + 9

    asyncio.run(run())


def test_what_changes_something_goes_on_unheard(tmp_path: Path) -> None:
    async def run() -> None:
        program = f"print('x' * 1_000_000); open({str(tmp_path / 'done')!r}, 'w')"
        async with await works(tmp_path, backlog=10).start([program], changes=True) as work:
            pass
        assert await work.exit_code() == 0
        assert (tmp_path / "done").exists()
        assert await said(work) == {Stream.OUT: "", Stream.ERR: ""}

    asyncio.run(run())


def test_a_slow_reader_holds_up_nothing_that_changes_something(tmp_path: Path) -> None:
    async def run() -> None:
        program = "import sys\nfor n in range(100_000): print('line', n, file=sys.stderr)\nprint('all done')"
        work = await works(tmp_path, backlog=1000).start([program], changes=True)
        assert await work.exit_code() == 0
        assert "characters are left out" in (await said(work))[Stream.ERR]

    asyncio.run(run())


def test_a_slow_reader_gets_all_of_what_only_looks(tmp_path: Path) -> None:
    async def run() -> None:
        work = await works(tmp_path, backlog=1000).start(["print('x' * 1_000_000)"], changes=False)
        assert len((await said(work))[Stream.OUT]) == 1_000_001
        assert await work.exit_code() == 0

    asyncio.run(run())


def test_what_looks_for_too_long_is_ended(tmp_path: Path) -> None:
    async def run() -> None:
        work = await works(tmp_path, reading_seconds=0.05).start(["import time; time.sleep(600)"], changes=False)
        with pytest.raises(Failed, match=r"to end within 0\.05 s"):
            await work.exit_code()
        assert await said(work) == {Stream.OUT: "", Stream.ERR: ""}

    asyncio.run(run())


def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostagent.agent.work._REST_SECONDS", 0.05)

    async def run() -> int:
        program = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid)"
        work = await works(tmp_path).start([program], changes=True)
        assert await work.exit_code() == 0
        return int((await said(work))[Stream.OUT])

    os.kill(asyncio.run(run()), 9)


def test_files_are_private_and_gone_with_the_verb(tmp_path: Path) -> None:
    async def run() -> str:
        program = (
            "import os, sys; print(sys.argv[1]); print(oct(os.stat(sys.argv[1]).st_mode), open(sys.argv[1]).read())"
        )
        work = await works(tmp_path).start([program, "@plan"], changes=False, files={"@plan": b"a plan"})
        path, content = (await said(work))[Stream.OUT].splitlines()
        assert content == "0o100600 a plan"
        await asyncio.sleep(0)
        return path

    path = asyncio.run(run())
    assert not Path(path).exists()
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700


def test_a_verb_that_the_agent_runs_does_not_ask_the_agent(tmp_path: Path) -> None:
    async def run() -> None:
        work = await works(tmp_path).start(["import os; print(os.environ['HOSTAGENT_AGENT'])"], changes=False)
        assert (await said(work))[Stream.OUT] == "off\n"

    asyncio.run(run())


def test_what_cannot_be_started_takes_nobodys_turn(tmp_path: Path) -> None:
    async def run() -> None:
        all_of_them = works(tmp_path)
        with pytest.raises(Failed, match="null byte"):
            await all_of_them.start(["pass", "a\0b"], changes=True, files={"@plan": b""})
        assert list((tmp_path / "given").iterdir()) == []
        work = await all_of_them.start(["pass"], changes=True)
        assert await work.exit_code() == 0

    asyncio.run(run())


def test_the_service_ends_what_looks_alone(tmp_path: Path) -> None:
    async def run() -> None:
        all_of_them = works(tmp_path)
        changing = await all_of_them.start(["input()"], changes=True)
        looking = await all_of_them.start(["import time; time.sleep(600)"], changes=False)
        await all_of_them.end()
        assert looking.is_over
        assert await changing.exit_code() == 1  # the end of its input, not ours

    asyncio.run(run())


def test_what_changes_something_goes_on_without_the_service(tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    os.mkfifo(go)

    async def run() -> int:
        program = f"open({str(go)!r}).read(); print('heard by nobody'); open({str(done)!r}, 'w').write('done')"
        all_of_them = works(tmp_path)
        work = await all_of_them.start([program], changes=True)
        await all_of_them.end()
        return work.pid

    pid = asyncio.run(run())
    gc.collect()  # asyncio's own processes are killed by this
    over = os.pidfd_open(pid)
    go.write_text("on")
    select.select([over], [], [], 60)
    os.close(over)
    assert done.read_text() == "done"


def test_what_lies_in_the_folder_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "left").write_text("over")
    for _ in range(2):
        works(tmp_path).forget_files()
    works(tmp_path / "none").forget_files()
    assert list((tmp_path / "given").iterdir()) == []


def test_a_gap_is_told_where_it_is() -> None:
    async def run() -> None:
        backlog = Backlog(4)
        for text in ("long", "lost", "lost too"):
            backlog.put(Chunk(Stream.OUT, text))
        assert await backlog.get() == Chunk(Stream.OUT, "long")
        backlog.put(Chunk(Stream.OUT, "next"))
        backlog.end()
        backlog.put(Chunk(Stream.OUT, "too late"))
        gap = await backlog.get()
        assert gap is not None and gap.text.startswith("(12 characters are left out")
        assert await backlog.get() == Chunk(Stream.OUT, "next")
        assert await backlog.get() is None

    asyncio.run(run())


def test_what_nobody_will_read_is_not_kept() -> None:
    async def run() -> None:
        backlog = Backlog(4)
        for text in ("long", "lost"):
            backlog.put(Chunk(Stream.OUT, text))
        backlog.forget()
        backlog.put(Chunk(Stream.OUT, "too late"))
        assert await backlog.get() is None

    asyncio.run(run())


def test_what_changes_something_gets_a_unit_of_its_own() -> None:
    common = ("--config", "/etc/other.toml")
    words = ["update", "qemu", "--yes"]
    child, unit = AsChild(common), AsUnit(common)
    assert child.changing(words, {}) == (sys.executable, "-m", "hostagent.cli", *common, *words)
    assert unit.reading(words) == child.reading(words) == (*WITH_US, *child.changing(words, {}))
    argv = unit.changing(words, {"COLUMNS": "120"})
    assert "--property=KillMode=process" in argv
    assert "--setenv=COLUMNS=120" in argv
    assert tuple(argv[list(argv).index("--", len(WITH_US)) + 1 :]) == child.changing(words, {})

"""What goes wrong with guests that are held, and what others do to them meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from hostagent.errors import Failed, HostagentError
from hostagent.hypervisor import RunState, fake_image, fake_saves
from hostagent.hypervisor.fake import FaultKind
from hostagent.hypervisor.fake_component import FakeComponent
from hostagent.hypervisor.fake_libvirt import FakeLibvirt
from hostagent.libvirt_files.capability_cache import CapabilityCache
from hostagent.update import hold_batch
from hostagent.update.journal import Outcome
from tests.crash import shapes
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import FILE, JOURNAL, WORLD, Points, Rig, Scenario, rig
from tests.crash.sweep import Share, sweep

UPDATED, ROLLED_BACK, LOST, GONE = Outcome.UPDATED, Outcome.ROLLED_BACK, Outcome.LOST, Outcome.GONE
NEEDS_OPERATOR = Outcome.NEEDS_OPERATOR
K = FaultKind
BOTH = Scenario(held=("web1", "db1"))
ALONE = Scenario(guests=("web1",), held=("web1",))
Found = Iterator[tuple[str, Sequence[str]]]


def web1_and_db1(host: Rig) -> tuple[Outcome | None, Outcome | None]:
    ended = outcomes(host)
    return ended["web1"], ended["db1"]


@pytest.mark.parametrize(
    "kind",
    [
        K.BLOCKED,
        K.SUSPEND_FAILS,
        K.SAVE_FAILS,
        K.SAVE_HANGS,
        K.SAVE_DAEMON_DIES,
        K.SAVE_DAEMON_DIES_SOON,
        K.RESTORE_FAILS,
        K.RESTORE_HANGS,
        K.RESTORE_EXITS,
    ],
    ids=str,
)
def test_one_guest_turns_back_and_the_other_is_updated(kind: FaultKind) -> None:
    with rig(BOTH) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), []), reason(host, "web1")


@pytest.mark.parametrize(
    "kind", [K.SAVE_ASKS_NOBODY, K.SAVE_UNHEARD, K.RESTORE_UNHEARD, K.CONT_UNHEARD, K.NO_AGENT], ids=str
)
def test_overcome(kind: FaultKind) -> None:
    with rig(BOTH) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), []), reason(host, "web1")


@pytest.mark.parametrize("kind", [K.SAVE_EXITS, K.CONT_EXITS], ids=str)
def test_a_qemu_that_exits_with_the_only_state(kind: FaultKind) -> None:
    """What was saved before is past once the guest was told to go on, and never loaded."""
    with rig(BOTH) as host:
        host.host.fault(kind, host.uuids["web1"])
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((LOST, UPDATED), []), reason(host, "web1")


@pytest.mark.parametrize("kind", [K.CONT_FAILS, K.CONT_LOST], ids=str)
def test_it_cannot_be_resumed_at_first(kind: FaultKind) -> None:
    with rig(BOTH) as host:
        host.host.fault(kind, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (web1_and_db1(host), problems(host)) == ((NEEDS_OPERATOR, UPDATED), [])
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((UPDATED, UPDATED), [])


def test_it_can_be_restored_nowhere_at_first() -> None:
    """It stays held, with its RAM, until that is mended."""
    with rig(BOTH) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert web1_and_db1(host) == (NEEDS_OPERATOR, UPDATED)
        assert host.host.violations() == []
        assert "hostagent recover" in reason(host, "web1") or "recover" in str(host.updates()[-1])
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (web1_and_db1(host), problems(host)) == ((ROLLED_BACK, UPDATED), [])


def test_libvirt_does_not_come_back() -> None:
    """Its daemon crashes with a guest held: it is started again, now or by the next recovery."""
    for times in (1, -1):
        with rig(ALONE) as host:
            host.host.fault(K.DAEMON_STAYS_DOWN, times=times)
            points = Points(only=(JOURNAL,))
            points.act = lambda host=host, points=points: (  # type: ignore[misc]
                host.host.daemon_crashes() if "step-begun:restore" in points.labels[-1] else None
            )
            host.update(points)
            assert host.host.violations() == []
            assert outcomes(host)["web1"] in (NEEDS_OPERATOR, None)
            assert host.host.daemon.restart_hint() in reason(host, "web1")
            host.host.no_more_faults()
            assert host.recover() == ""
            assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])


def test_a_save_that_cannot_be_held_up_is_swept_too() -> None:
    def found(share: Share) -> Found:
        with rig(ALONE) as host:
            host.host.fault(K.SAVE_ASKS_NOBODY, times=-1)
            for moment in share.of(host.moments(host.update, (JOURNAL, FILE, WORLD))):
                host.go_back(moment)
                raised = host.recover()
                yield moment.label, [*([raised] if raised else []), *problems(host)]

    sweep(found)


@pytest.mark.parametrize("asked", [True, False], ids=["while its QEMU is there", "when its QEMU has ended"])
def test_a_state_that_is_not_understood(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt gives the save up while it can; nothing was ended, nothing has to be restored."""
    written = fake_saves.fake_image.image
    monkeypatch.setattr(fake_image, "image", lambda **more: written(**{**more, "machine": "\0"}))  # type: ignore[arg-type]
    with rig(ALONE) as host:
        (before,) = host.host.processes(host.uuids["web1"])
        if not asked:
            host.host.fault(K.SAVE_ASKS_NOBODY)
        assert host.update() == ""
        assert "expected a machine type in plain characters" in reason(host, "web1")
        if asked:
            assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])
            assert [one.pid for one in host.host.processes(host.uuids["web1"])] == [before.pid]
        else:
            assert (outcomes(host)["web1"], host.host.violations()) == (NEEDS_OPERATOR, [])


def test_a_qemu_that_stays_though_it_was_killed() -> None:
    """Its RAM and its state are kept until it has ended."""
    with rig(ALONE) as host:
        (before,) = host.host.processes(host.uuids["web1"])
        host.host.fault(K.KILL_HANGS, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (NEEDS_OPERATOR, [])
        assert "its QEMU was killed, and stays" in reason(host, "web1")
        assert set(images(host)) == {"plain", "before", "after"}
        host.host.no_more_faults()
        host.host.kill(before.pid)
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])


# -- its state is damaged -----------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def images(host: Rig) -> dict[str, Path]:
    return {path.suffix[1:]: path for path in (host.root / "state" / "held").glob("u1-*")}


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
@pytest.mark.parametrize(
    ("which", "outcome"),
    [(("after",), UPDATED), (("before",), UPDATED), (("plain",), UPDATED), (("after", "plain"), ROLLED_BACK)],
    ids=str,
)
def test_a_damaged_state_is_never_loaded(
    harm: Callable[[Path], None], which: tuple[str, ...], outcome: Outcome
) -> None:
    """There are several copies; the one for the way back serves too."""
    with rig(ALONE) as host:
        points = Points(only=(JOURNAL,))

        def act() -> None:
            if points.labels[-1].endswith("before step-done:save") or "step-begun:restore" in points.labels[-1]:
                points.act = lambda: None
                for name in which:
                    harm(images(host)[name])

        points.act = act
        assert host.update(points) == ""
        assert (outcomes(host)["web1"], problems(host)) == (outcome, []), reason(host, "web1")


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_all_of_its_state_is_damaged(harm: Callable[[Path], None]) -> None:
    """It is held until a copy is put back."""
    with rig(ALONE) as host:
        points, kept = Points(only=(JOURNAL,)), dict[Path, bytes]()

        def act() -> None:
            if "step-begun:restore" in points.labels[-1]:
                points.act = lambda: None
                for path in images(host).values():
                    kept[path] = path.read_bytes()
                    harm(path)

        points.act = act
        assert host.update(points) == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (NEEDS_OPERATOR, [])
        assert "it is held" in reason(host, "web1")
        assert host.recover() == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (NEEDS_OPERATOR, [])
        for path, data in kept.items():
            path.write_bytes(data)
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])


def test_its_ram_is_not_where_it_was() -> None:
    """Nothing is loaded over other RAM."""
    with rig(ALONE) as host:
        points = Points(only=(JOURNAL,))
        aside = host.root / "vault"
        pins: list[Path] = []

        def act() -> None:
            if "step-begun:restore" in points.labels[-1]:
                points.act = lambda: None
                aside.mkdir()
                pins.extend((host.root / "ram" / "hostagent").iterdir())
                for pin in pins:
                    pin.rename(aside / pin.name)

        points.act = act
        assert host.update(points) == ""
        assert outcomes(host)["web1"] is NEEDS_OPERATOR
        for pin in pins:
            (aside / pin.name).rename(pin)
        assert host.recover() == ""
        assert outcomes(host)["web1"] is ROLLED_BACK
        told = [line for line in host.host.violations() if "discarded" not in line]  # that was the test itself
        assert told == []


# -- others act meanwhile -----------------------------------------------------------------------------------------


def resume(host: Rig) -> None:
    with suppress(HostagentError, KeyError):
        host.host.resume(host.uuids["web1"])


def pause(host: Rig) -> None:
    with suppress(HostagentError, KeyError):
        host.host.pause(host.uuids["web1"])


def test_nothing_is_held_where_libvirt_does_not_ask_the_hook() -> None:
    with rig(ALONE) as host:
        host.host.world.hook_is_asked = False
        assert "it was not asked" in host.update()
        assert host.updates() == ()
        (old,) = host.host.processes(host.uuids["web1"])
        assert old.stopped_ns == 0
        assert not list(host.host.world.held.iterdir())


def test_somebody_gives_its_ram_up() -> None:
    """As docs/runbook.md says: what runs then is another life of the guest, and none of ours."""
    with rig(ALONE) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"], times=-1)
        host.update()
        assert outcomes(host)["web1"] is NEEDS_OPERATOR
        with pytest.raises(HostagentError, match="it is held by hostagent"):
            host.host.start(host.uuids["web1"])
        (host.host.world.held / "web1.held").unlink()
        host.host.start(host.uuids["web1"])
        assert host.recover() == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (GONE, [])
        (runs,) = host.host.processes(host.uuids["web1"])
        assert runs.state is RunState.RUNNING
        assert not list((host.root / "state" / "held").iterdir())
        assert not (host.root / "ram" / "hostagent").exists()


def resume_and_destroy(host: Rig) -> None:
    resume(host)
    host.host.destroy(host.uuids["web1"])


@pytest.mark.parametrize("act", [resume, resume_and_destroy])
@pytest.mark.parametrize("killed", [False, True], ids=["updater lives", "updater is killed"])
def test_an_operator_acts(act: Callable[[Rig], None], killed: bool) -> None:
    """At every moment; what has gone on is never loaded from what was saved before, and never doubled."""

    def recovered(host: Rig) -> list[str]:
        raised = host.recover()
        wrong = [raised] if raised else []
        gone = {"web1"} if not host.host.processes(host.uuids["web1"]) else set()
        lost = outcomes(host).get("web1") is LOST
        return [*wrong, *problems(host, gone=gone), *(["lost"] if lost and not gone else [])]

    def lives(share: Share) -> Found:
        with rig(ALONE) as host:
            counted = Points()
            host.update(counted)
        for number, label in share.of(list(enumerate(counted.labels, start=1))):
            with rig(ALONE) as host:
                host.update(Points(lambda: act(host), number))
                yield label, recovered(host)

    def dies(share: Share) -> Found:
        with rig(ALONE) as host:
            for moment in share.of(host.moments(host.update, (JOURNAL, FILE, WORLD))):
                host.go_back(moment)
                act(host)
                yield moment.label, recovered(host)

    sweep(dies if killed else lives)


# -- something is swapped for the whole host ------------------------------------------------------------------------

SWAP = Scenario(held=("web1", "db1"), swaps=True)


def swapped(host: Rig) -> tuple[Outcome | None, str]:
    """How the update ended, and what runs."""
    (update,) = (update for update in host.updates() if update.id == "u1")
    return update.outcome, host.component.build()


@pytest.mark.parametrize(
    "kind", [K.APPLY_FAILS, K.SAVE_FAILS, K.SAVE_HANGS, K.RESTORE_FAILS, K.RESTORE_EXITS, K.SUSPEND_FAILS], ids=str
)
def test_all_go_back_when_one_of_them_or_the_swap_fails(kind: FaultKind) -> None:
    with rig(SWAP) as host:
        host.host.fault(kind)
        assert host.update() == ""
        assert (swapped(host), web1_and_db1(host)) == ((ROLLED_BACK, "old"), (ROLLED_BACK, ROLLED_BACK))
        assert problems(host) == []


@pytest.mark.parametrize("kind", [K.SAVE_UNHEARD, K.RESTORE_UNHEARD, K.CONT_UNHEARD, K.NO_AGENT], ids=str)
def test_all_go_on(kind: FaultKind) -> None:
    with rig(SWAP) as host:
        host.host.fault(kind)
        assert host.update() == ""
        assert (swapped(host), problems(host)) == ((UPDATED, "new"), [])
        (update,) = host.updates()
        assert all("pause_seconds" in guest.measured for guest in update.guests.values())


def test_what_cannot_be_staged_pauses_nobody() -> None:
    with rig(SWAP) as host:
        host.host.fault(K.STAGE_FAILS)
        assert "staging modules" in host.update()
        assert host.updates() == ()
        assert [host.host.processes(uuid)[0].stopped_ns for uuid in host.uuids.values()] == [0, 0]


def test_what_was_staged_is_given_up_when_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that stays loaded, say, would be started by the host's next reboot."""
    given_up: list[str] = []
    monkeypatch.setattr(FakeComponent, "forget", lambda self: given_up.append(self.name))
    with rig(SWAP) as host:
        host.host.world.hook_is_asked = False
        assert "expected a start that it refuses to be refused" in host.update()
        assert (given_up, host.updates()) == (["modules"], ())


def test_neither_the_new_nor_the_old_loads_at_first() -> None:
    """Nobody can run meanwhile: all stay held, until that is mended."""
    with rig(SWAP) as host:
        host.host.fault(K.APPLY_FAILS)
        host.host.fault(K.ROLL_BACK_FAILS)
        assert host.update() == ""
        assert (swapped(host), web1_and_db1(host)) == ((None, "gone"), (NEEDS_OPERATOR, NEEDS_OPERATOR))
        assert host.host.violations() == []
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (swapped(host), problems(host)) == ((ROLLED_BACK, "old"), [])


def test_one_cannot_be_resumed_at_first_and_the_others_go_on() -> None:
    with rig(SWAP) as host:
        host.host.fault(K.CONT_FAILS, host.uuids["web1"], times=-1)
        assert host.update() == ""
        assert web1_and_db1(host) == (NEEDS_OPERATOR, UPDATED)
        host.host.no_more_faults()
        assert host.recover() == ""
        assert (swapped(host), problems(host)) == ((UPDATED, "new"), [])


def test_the_guard_is_told_of_the_first_and_let_go_with_the_last() -> None:
    """A budget is each guest's own: the first to stand still is the first to have used it up."""
    with rig(SWAP) as host:
        until: list[float | None] = []
        points = Points(lambda: until.append(host.guard.until), only=(JOURNAL,))
        assert host.update(points) == ""
        paused = [at for at in until if at is not None]
        assert len(set(paused)) == 1
        resumes = [at for at, label in zip(until, points.labels, strict=True) if "step-done:resume" in label]
        assert resumes[0] is not None
        assert host.guard.until is None


# -- sequences that once went wrong ---------------------------------------------------------------------------------


def killed(host: Rig, words: str, nth: int = 1) -> None:
    """Everybody dies as that is, or was, written for the nth time."""
    kept = [moment for moment in host.snapshots(host.update, (JOURNAL,)) if words in moment.label]
    host.go_back(kept[nth - 1])


def at(words: str, act: Callable[[], None], nth: int = 1) -> Points:
    """Points that do that once, at the nth journal write of which that is said."""
    points, seen = Points(only=(JOURNAL,)), [0]

    def reached() -> None:
        seen[0] += words in points.labels[-1]
        if seen[0] == nth:
            points.act = lambda: None
            act()

    points.act = reached
    return points


def pid_of(host: Rig, name: str) -> int:
    (process,) = host.host.processes(host.uuids[name])
    return process.pid


def test_a_display_s_memory_is_in_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is larger than anything else that is read whole."""
    made, read = fake_image.image, fake_saves._unsealed
    monkeypatch.setattr(fake_image, "image", lambda **k: made(**{**k, "rest": k["rest"] + b"\1" * (17 << 20)}))
    monkeypatch.setattr(fake_saves, "_unsealed", lambda rest: read(rest.rstrip(b"\1")))
    with rig(ALONE) as host:
        assert host.update() == ""
        assert (outcomes(host)["web1"], problems(host)) == (UPDATED, []), reason(host, "web1")


def test_whether_it_was_saved_cannot_be_told_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no proof that it was not."""

    def fails(_: object) -> bool:
        raise Failed("reading it", found="Input/output error")

    with rig(ALONE) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"])
        with monkeypatch.context() as patched:
            patched.setattr(hold_batch, "has_state", fails)
            host.update()
        assert (outcomes(host)["web1"], host.host.violations()) == (NEEDS_OPERATOR, [])
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])


def test_libvirt_s_daemon_ends_it_as_it_comes_back() -> None:
    """It was being restored: its RAM is as it was."""
    with rig(ALONE) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"])

        def by_the_daemon() -> None:
            with host.host.world.change() as state:
                state.guests[host.uuids["web1"]].off = "daemon"

        assert host.update(at("step-failed:restore", by_the_daemon)) == ""
        assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, []), reason(host, "web1")


def test_it_is_restored_with_other_ram_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt does not ask the hook: nothing with other RAM is ever resumed."""
    with rig(ALONE) as host:
        asks = fake_saves.asks_hook
        monkeypatch.setattr(fake_saves, "asks_hook", lambda *_: None)
        host.update()
        for _ in range(2):
            assert outcomes(host)["web1"] is NEEDS_OPERATOR
            assert host.host.violations() == []
            assert host.host.processes(host.uuids["web1"]) == []
            host.recover()
        monkeypatch.setattr(fake_saves, "asks_hook", asks)
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])


def test_it_may_have_gone_on_while_nobody_was_at_work() -> None:
    """An operator resumes what he sees, and it dies: what was saved is past."""
    with rig(ALONE) as host:
        killed(host, "before step-begun:resume")
        host.host.resume(host.uuids["web1"])
        host.host.kill(pid_of(host, "web1"))
        for _ in range(2):
            host.recover()
            assert (outcomes(host)["web1"], host.host.violations()) == (NEEDS_OPERATOR, [])
            assert "rm " in reason(host, "web1")
        (host.host.world.held / "web1.held").unlink()
        host.host.start(host.uuids["web1"])
        assert host.recover() == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (GONE, [])


@pytest.mark.parametrize("then", ["it crashes", "it is paused", "nothing"])
def test_somebody_gives_its_ram_up_and_then(then: str) -> None:
    """Its new life is none of ours, whatever becomes of it."""
    with rig(ALONE) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"], times=-1)
        host.update()
        host.host.no_more_faults()
        (host.host.world.held / "web1.held").unlink()
        host.host.start(host.uuids["web1"])
        if then == "it crashes":
            host.host.kill(pid_of(host, "web1"))
        elif then == "it is paused":
            host.host.pause(host.uuids["web1"])
        lives = [one.pid for one in host.host.processes(host.uuids["web1"])]
        assert host.recover() == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (GONE, [])
        assert [one.pid for one in host.host.processes(host.uuids["web1"])] == lives
        assert not (host.root / "ram" / "hostagent").exists()


def test_one_that_was_told_to_go_on_is_never_restored_once_more() -> None:
    """Not even when the journal does not know that it had been restored."""
    with rig(SWAP) as host:
        failed = [0]

        def once() -> None:
            failed[0] += 1
            raise Failed("writing the journal", found="database or disk is full")

        kept = host.snapshots(
            lambda points: host.update(both_act(points, "before step-done:restore", once)), (JOURNAL,)
        )
        assert failed == [1]
        (after,) = [moment for moment in kept if "after step-done:resume" in moment.label][:1]
        host.go_back(after)
        first = next(name for name in ("db1", "web1") if host.host.processes(host.uuids[name]))
        (process,) = host.host.processes(host.uuids[first])
        if process.state is RunState.RUNNING:
            host.host.kill(process.pid)
        host.recover()
        assert not [line for line in host.host.violations() if "past" in line]


def both_act(points: Points, words: str, act: Callable[[], None]) -> Points:
    """What the points do, and that once."""
    before, done = points.act, [False]

    def reached() -> None:
        before()
        if words in points.labels[-1] and not done[0]:
            done[0] = True
            act()

    points.act = reached
    return points


def test_the_journal_is_full_as_it_is_sealed() -> None:
    """It comes back on what it ran on all the same."""
    with rig(ALONE) as host:
        points, seen = Points(only=(JOURNAL,)), [0]

        def act() -> None:
            seen[0] += points.labels[-1] == "journal before noted"
            if seen[0] >= 3 and points.labels[-1].startswith("journal before"):
                raise Failed("writing the journal", found="database or disk is full")

        points.act = act
        host.update(points)
        (process,) = host.host.processes(host.uuids["web1"])
        assert (process.state, host.host.violations()) == (RunState.RUNNING, [])
        assert host.recover() == ""
        assert (outcomes(host)["web1"], problems(host)) == (ROLLED_BACK, [])


def test_one_is_resumed_by_somebody_and_another_cannot_be_restored_at_first() -> None:
    """What was swapped is in use then, and stays."""
    with rig(SWAP) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"])
        assert host.update(at("after step-begun:restore", lambda: host.host.resume(host.uuids["db1"]), nth=2)) == ""
        assert host.recover() == ""
        assert (swapped(host), problems(host)) == ((UPDATED, "new"), [])


def test_a_guest_that_nobody_planned_with_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is swapped below it."""
    with rig(SWAP) as host:
        applied: list[str] = []
        monkeypatch.setattr(FakeComponent, "apply", lambda self: applied.append(self.name))
        boot = lambda: host.host.boot(shapes.q35(), "late")  # noqa: E731
        assert host.update(at("before step-begun:swap", boot)) == ""
        assert applied == []
        assert web1_and_db1(host) == (ROLLED_BACK, ROLLED_BACK)
        assert "found late" in reason(host, "web1")


def test_one_that_is_updated_is_its_owner_s_again_while_the_next_is_held() -> None:
    with rig(BOTH) as host:
        destroy = lambda: host.host.destroy(host.uuids["db1"])  # noqa: E731
        assert host.update(at("after step-begun:pause", destroy, nth=2)) == ""
        assert not (host.host.world.held / "db1.held").exists()
        ended = outcomes(host)
        assert ended["web1"] is UPDATED
        assert ended["db1"] in {UPDATED, GONE}


def test_undone_on_a_full_journal_and_ended_later() -> None:
    with rig(ALONE) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"])
        points = Points(only=(JOURNAL,))

        def act() -> None:
            if any("undo-begun" in label for label in points.labels) and points.labels[-1].startswith("journal before"):
                raise Failed("writing the journal", found="database or disk is full")

        points.act = act
        host.update(points)
        host.host.kill(pid_of(host, "web1"))
        assert host.recover() == ""
        assert (outcomes(host)["web1"], host.host.violations()) == (GONE, [])


def test_a_swap_without_guests_that_was_undone_is_no_update() -> None:
    with rig(Scenario(guests=(), swaps=True)) as host:
        host.host.fault(K.APPLY_FAILS)
        killed(host, "before update-ended")
        assert host.recover() == ""
        assert swapped(host) == (ROLLED_BACK, "old")


def test_the_guard_lets_go_of_one_that_waits_for_a_person() -> None:
    with rig(ALONE) as host:
        host.host.fault(K.RESTORE_FAILS, host.uuids["web1"], times=-1)
        host.update()
        assert outcomes(host)["web1"] is NEEDS_OPERATOR
        assert host.guard.until is None


def state_of(host: Rig, name: str) -> RunState:
    (process,) = host.host.processes(host.uuids[name])
    return process.state


def test_one_that_went_on_and_was_paused_by_its_owner_stays_so() -> None:
    """Nobody was at work meanwhile; and how long it stood still for us is not told anew."""
    with rig(SWAP) as host:
        killed(host, "after step-done:resume", nth=2)
        told = {guest.name: guest.measured["pause_seconds"] for guest in host.updates()[0].guests.values()}
        assert set(told) == {"web1", "db1"}
        host.host.pause(host.uuids["web1"])
        assert host.recover() == ""
        assert (state_of(host, "web1"), state_of(host, "db1")) == (RunState.PAUSED, RunState.RUNNING)
        after = {guest.name: guest.measured["pause_seconds"] for guest in host.updates()[0].guests.values()}
        assert (after, web1_and_db1(host)) == (told, (UPDATED, UPDATED))


def test_libvirt_is_away_as_they_are_to_go_on() -> None:
    """Its daemon is started, and all of them go on."""
    with rig(SWAP) as host:
        assert host.update(at("after step-begun:resume", host.host.daemon_crashes)) == ""
        assert (state_of(host, "web1"), state_of(host, "db1")) == (RunState.RUNNING, RunState.RUNNING)
        assert (swapped(host), problems(host)) == ((UPDATED, "new"), [])


@pytest.mark.parametrize("knows", [True, False], ids=["as it can", "which it cannot"])
def test_libvirt_examines_the_qemu_that_it_comes_to_beforehand(knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the guest would stand still meanwhile; where that fails the restore says more of it."""
    asked, (look, suspend) = list[str](), (FakeLibvirt.capability_cache, FakeLibvirt.suspend)

    def looks(libvirt: FakeLibvirt, emulator: str, *more: str) -> CapabilityCache:
        asked.append(emulator)
        if not knows:
            raise Failed("having libvirt examine it", found="an error")
        return look(libvirt, emulator, *more)

    def suspends(libvirt: FakeLibvirt, uuid: str) -> None:
        asked.append("pause")
        suspend(libvirt, uuid)

    monkeypatch.setattr(FakeLibvirt, "capability_cache", looks)
    monkeypatch.setattr(FakeLibvirt, "suspend", suspends)
    with rig(ALONE) as host:
        assert host.update() == ""
        assert (outcomes(host)["web1"], problems(host)) == (UPDATED, [])
    assert asked == [shapes.NEW.emulator, "pause"]

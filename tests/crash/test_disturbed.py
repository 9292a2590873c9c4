"""Others act on the host, and disks fill up, at every moment of an update."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from hostagent.hypervisor import RunState
from hostagent.update.journal import Outcome
from tests.crash.judge import outcomes, problems, reason
from tests.crash.rig import FILE, JOURNAL, Points, Rig, Scenario, disk_full, journal_full, rig
from tests.crash.sweep import Share, sweep

KEPT, COPIED = Scenario(), Scenario(copied=("web1",))
KVM_COPIED = Scenario(copied=("web1",), kvm=True)
HELD = Scenario(held=("web1", "db1"))
SWAP = Scenario(held=("web1", "db1"), swaps=True)
Found = Iterator[tuple[str, Sequence[str]]]


def labels(
    scenario: Scenario, kinds: tuple[str, ...], wanted: Callable[[str], bool] = lambda _: True
) -> list[tuple[int, str]]:
    """The numbered moments of an undisturbed update."""
    points = Points(only=kinds)
    with rig(scenario) as host:
        assert host.update(points) == ""
    return [(number, label) for number, label in enumerate(points.labels, start=1) if wanted(label)]


def disturbed(
    scenario: Scenario,
    act: Callable[[Rig], None],
    kinds: tuple[str, ...],
    wanted: Callable[[str], bool],
    look: Callable[[Rig], list[str]],
) -> Callable[[Share], Found]:
    """An update with the act at each of the wanted moments, then a recovery as the next command would run it."""

    def trials(share: Share) -> Found:
        for number, label in share.of(labels(scenario, kinds, wanted)):
            with rig(scenario) as host:
                raised = host.update(Points(lambda: act(host), number, kinds))
                wrong = [f"not undisturbed: {host.host.violations()}"] if host.host.violations() else []
                wrong += not_left_standing(host)
                again = host.recover()
                wrong += [line for line in (raised, again) if line.startswith("CRASHED")]
                yield f"{label} ({raised or 'nothing raised'})", [*wrong, *look(host)]

    return trials


def not_left_standing(host: Rig) -> list[str]:
    """However an update ended, a guest that lives runs; after the intent somebody may be asked to see to it."""
    wrong, ended = [], outcomes(host)
    intended = {g.name for update in host.updates() for g in update.guests.values() if "resume" in g.progress.begun}
    for name, uuid in host.uuids.items():
        living = host.host.processes(uuid)
        runs = any(one.state is RunState.RUNNING for one in living)
        asked_for = name in intended and ended.get(name) is Outcome.NEEDS_OPERATOR
        if living and not runs and not asked_for:
            wrong.append(f"{name} stands still: {reason(host, name)}")
    return wrong


def before_journal(label: str) -> bool:
    return label.startswith("journal before")


def needs_room(label: str) -> bool:
    """A new file, folder or link; a rename needs none."""
    return label.startswith(("file open", "file os.mkdir", "file os.link"))


def can_fail(label: str) -> bool:
    """Removing the pins' folder may fail for good reason: another update's pins are in it."""
    return "rmdir" not in label


def old_of(host: Rig, name: str) -> int:
    return 1001 + 100 * list(host.uuids).index(name)


def kill_old(host: Rig) -> None:
    host.host.kill(old_of(host, "web1"))


def kill_old_slowly(host: Rig) -> None:
    """On a busy host a killed QEMU is there for a moment, and does nothing any more."""
    host.host.kill(old_of(host, "web1"), slowly=True)


def kill_new(host: Rig) -> None:
    for process in host.host.processes(host.uuids["web1"]):
        if process.pid != old_of(host, "web1"):
            host.host.kill(process.pid)


def destroy(host: Rig) -> None:
    host.host.destroy(host.uuids["web1"])


def restart_daemon(host: Rig) -> None:
    """Somebody's `systemctl restart libvirtd`, which stays away while the driver's lock is held."""
    host.host.daemon_crashes()
    host.host.somebody_starts_daemon()


def crash_daemon(host: Rig) -> None:
    """It comes back only when somebody sees to it."""
    host.host.daemon_crashes()


def start_daemon(host: Rig) -> None:
    host.host.somebody_starts_daemon()


def all_well(host: Rig) -> list[str]:
    host.host.somebody_starts_daemon()
    return problems(host)


def ended_by_somebody(host: Rig) -> list[str]:
    """web1 was ended by others: nothing of it runs or is left over; db1 was not touched by that."""
    wrong = problems(host, gone={"web1"}) if not host.host.processes(host.uuids["web1"]) else problems(host)
    ended = outcomes(host)
    # What is swapped for the host is rolled back when a guest does not come up on it, whoever saw to that.
    fine = {Outcome.UPDATED, Outcome.ROLLED_BACK} if host.scenario.swaps else {Outcome.UPDATED}
    return wrong if ended.get("db1") in fine else [*wrong, f"db1 ended as {ended.get('db1')}: {reason(host, 'db1')}"]


@pytest.mark.parametrize("scenario", [KEPT, COPIED, KVM_COPIED, HELD, SWAP], ids=str)
@pytest.mark.parametrize("act", [kill_old, kill_new, destroy])
def test_a_guest_is_ended(act: Callable[[Rig], None], scenario: Scenario) -> None:
    sweep(disturbed(scenario, act, (JOURNAL,), before_journal, ended_by_somebody))


@pytest.mark.parametrize("scenario", [KEPT, HELD], ids=str)
def test_a_guest_s_qemu_is_killed_and_takes_its_time(scenario: Scenario) -> None:
    sweep(disturbed(scenario, kill_old_slowly, (JOURNAL,), before_journal, ended_by_somebody))


@pytest.mark.parametrize("scenario", [KEPT, COPIED, HELD, SWAP], ids=str)
@pytest.mark.parametrize("act", [restart_daemon, crash_daemon, start_daemon])
def test_daemon_comes_and_goes(act: Callable[[Rig], None], scenario: Scenario) -> None:
    sweep(disturbed(scenario, act, (JOURNAL,), before_journal, all_well))


@pytest.mark.parametrize("scenario", [KEPT, COPIED, HELD, SWAP], ids=str)
def test_journal_fails_once(scenario: Scenario) -> None:
    sweep(disturbed(scenario, lambda _: journal_full(), (JOURNAL,), before_journal, all_well))


@pytest.mark.parametrize("scenario", [KEPT, COPIED, HELD, SWAP], ids=str)
def test_file_operation_fails_once(scenario: Scenario) -> None:
    sweep(disturbed(scenario, lambda _: disk_full(), (FILE,), can_fail, all_well))


@pytest.mark.parametrize("scenario", [KEPT, COPIED, HELD, SWAP], ids=str)
@pytest.mark.parametrize("kinds", [(JOURNAL,), (FILE,), (JOURNAL, FILE)], ids=["journal", "files", "both"])
def test_disk_stays_full(kinds: tuple[str, ...], scenario: Scenario) -> None:
    """From some moment on nothing can be written. Guests run; once there is room again, all is put right."""

    def trials(share: Share) -> Found:
        for number, label in share.of(labels(scenario, kinds)):
            with rig(scenario) as host:
                points = Points(only=kinds)

                def act() -> None:
                    if len(points.labels) < number:  # noqa: B023 - called in this turn
                        return
                    last = points.labels[-1]  # noqa: B023
                    if last.startswith("journal before"):
                        journal_full()
                    if needs_room(last):
                        disk_full()

                points.act = act
                raised = host.update(points)
                wrong = [*host.host.violations(), *not_left_standing(host)]
                wrong += [line for line in (raised, host.recover()) if line.startswith("CRASHED")]
                yield label, [*wrong, *problems(host)]

    sweep(trials)

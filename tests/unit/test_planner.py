"""Facts in, plan out."""

import dataclasses

import pytest
from sampled import TREE, guest, host, within

from hostagent.errors import UsageError
from hostagent.facts import Guest, GuestState, Host, QemuTree, Version
from hostagent.plan import Method, Reason, Technique, Verdict
from hostagent.planning.planner import choose_tree, plan_qemu
from hostagent.planning.prediction import Past

NEW = QemuTree("10.0.2+ds-2", Version(10, 0, 2), "1:10.0.2+ds-2", "/var/lib/hostagent/qemu/10.0.2/usr/bin/q")


def test_a_plan_gives_every_guest_a_verdict() -> None:
    guests = (
        guest(),
        guest("pc-plain", qemu=NEW),
        guest("prealloc"),
        guest("user", state=GuestState.SHUT_OFF, process=None, qemu=None, domain_id=None),
    )
    plan = plan_qemu(host(guests=guests, qemu=(TREE, NEW)), NEW, None, policies=within(30.0))
    assert (plan.component, plan.to, plan.blockers) == ("qemu", NEW, ())
    assert [(planned.name, planned.verdict) for planned in plan.guests] == [
        ("q35-rich", Verdict.UPDATE),
        ("pc-plain", Verdict.UP_TO_DATE),
        ("prealloc", Verdict.BLOCKED),
        ("user", Verdict.NOT_RUNNING),
    ]
    update, current, blocked, off = plan.guests
    assert (update.method, update.technique, update.before) == (Method.IN_PLACE, Technique.HANDOVER, TREE)
    assert (update.budget_seconds, update.blockers) == (30.0, ())
    assert (current.method, current.blockers) == (None, ())
    assert {blocker.reason for blocker in blocked.blockers} == {Reason.RAM_DISCARD, Reason.RAM_FILE}
    assert (blocked.method, blocked.technique) == (None, None)
    assert off.blockers == ()
    assert plan.to_update == (update,)
    assert plan.blocked == (blocked,)


def test_a_guest_is_blocked_with_all_its_reasons() -> None:
    plan = plan_qemu(host(guests=(guest("prealloc", job="a job", checkpoints=1),)), NEW, None, policies=within(30.0))
    assert [blocker.reason for blocker in plan.guests[0].blockers] == [
        Reason.JOB,
        Reason.RAM_DISCARD,
        Reason.FEATURE,
        Reason.RAM_FILE,
    ]


def test_a_guest_of_the_target_version_is_up_to_date_whatever_it_is_made_of() -> None:
    plan = plan_qemu(host(guests=(guest("prealloc", qemu=NEW),)), NEW, None, policies=within(30.0))
    assert plan.guests[0].verdict is Verdict.UP_TO_DATE


def test_an_active_guest_without_a_process_is_blocked() -> None:
    lost = guest(process=None, qemu=None)
    plan = plan_qemu(host(guests=(lost,)), NEW, None, policies=within(30.0))
    assert plan.guests[0].verdict is Verdict.BLOCKED
    assert [blocker.reason for blocker in plan.guests[0].blockers] == [Reason.PROCESS]


def test_what_stops_the_host_is_in_the_plan() -> None:
    plan = plan_qemu(host(lock_manager="sanlock"), NEW, None, policies=within(30.0))
    assert [blocker.reason for blocker in plan.blockers] == [Reason.LOCK_MANAGER]


def test_only_the_named_guests_in_the_order_named() -> None:
    guests = (guest("pc-plain"), guest("q35-plain"), guest("pc-none"))
    plan = plan_qemu(host(guests=guests), NEW, ["pc-none", "pc-plain", "pc-none"], policies=within(30.0))
    assert [planned.name for planned in plan.guests] == ["pc-none", "pc-plain"]


def test_a_name_that_nobody_has() -> None:
    guests = (guest("pc-plain"), guest("q35-plain"))
    with pytest.raises(UsageError) as caught:
        plan_qemu(host(guests=guests), NEW, ["pc-plain", "web", "db"], policies=within(30.0))
    assert str(caught.value) == (
        "choosing guests: expected one of pc-plain, q35-plain, found db, web (hint: virsh list --all)"
    )
    with pytest.raises(UsageError, match="expected one of none, found web"):
        plan_qemu(host(guests=()), NEW, ["web"], policies=within(30.0))


def test_planning_twice_gives_the_same() -> None:
    assert plan_qemu(host(), NEW, None, policies=within(30.0)) == plan_qemu(host(), NEW, None, policies=within(30.0))


# -- which QEMU is meant

OTHER = QemuTree("10.0.3", Version(10, 0, 3), "1:10.0.3-1", "/x/q")
SAME = QemuTree("mine", Version(10, 0, 2), "", "/y/q")
OLD = QemuTree("7.2.1", Version(7, 2, 1), "1:7.2.1-1", "/z/q")


@pytest.mark.parametrize(
    ("trees", "wanted", "chosen"),
    [
        ((TREE, NEW, OTHER), "system", TREE),
        ((TREE, NEW, OTHER), "10.0.2+ds-2", NEW),
        ((TREE, NEW, OTHER), "10.0.2", NEW),
        ((TREE, NEW, OTHER), "10.0.3", OTHER),
        ((TREE, NEW, OTHER), "1:10.0.2+ds-2", NEW),
        ((TREE, NEW), "10.0", NEW),
        ((TREE, NEW), "10", NEW),
        ((TREE, NEW), "7.2", TREE),
        ((TREE, OLD), "7.2.1", OLD),  # an exact name before the beginning of another's version
    ],
)
def test_which_tree_is_meant(trees: tuple[QemuTree, ...], wanted: str, chosen: QemuTree) -> None:
    assert choose_tree(trees, wanted) is chosen


@pytest.mark.parametrize(
    ("trees", "wanted", "message"),
    [
        (
            (TREE, NEW, OTHER),
            "10.0",
            (
                "choosing a QEMU for '10.0': expected one of 10.0.2+ds-2 (10.0.2), 10.0.3 (10.0.3), "
                "found '10.0', which is 2 of them"
            ),
        ),
        (
            (NEW, SAME),
            "10.0.2",
            (
                "choosing a QEMU for '10.0.2': expected one of 10.0.2+ds-2 (10.0.2), mine (10.0.2), "
                "found '10.0.2', which is 2 of them"
            ),
        ),
        (
            (TREE, NEW),
            "9",
            "choosing a QEMU for '9': expected one of 10.0.2+ds-2 (10.0.2), system (7.2.22), found '9'",
        ),
        ((TREE, NEW), "1", "choosing a QEMU for '1': expected one of"),
        ((TREE, NEW), "", "choosing a QEMU for '': expected one of"),
        ((), "10.0", "choosing a QEMU for '10.0': expected one of none, found '10.0'"),
    ],
)
def test_no_tree_or_several(trees: tuple[QemuTree, ...], wanted: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_tree(trees, wanted)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


KEPT = dataclasses.replace(TREE, name="7.2+dfsg-7", emulator="/var/lib/hostagent/qemu/7.2+dfsg-7/usr/bin/qemu")


def test_a_kept_tree_of_the_same_build_is_not_another_version() -> None:
    assert choose_tree((TREE, NEW, KEPT), "7.2") is TREE
    assert choose_tree((TREE, NEW, KEPT), KEPT.name) is KEPT


def test_a_guest_on_a_kept_tree_of_that_build_is_up_to_date() -> None:
    plan = plan_qemu(host(qemu=(TREE, KEPT), guests=(guest(qemu=KEPT),)), TREE, None, policies=within(1.0))
    assert [planned.verdict for planned in plan.guests] == [Verdict.UP_TO_DATE]


# -- by which technique -------------------------------------------------------------------------------------------


def on_spice() -> Guest:
    return guest("spice")


def technique_of(seen: Host, wanted: Technique | None = None) -> tuple[Technique | None, set[Reason]]:
    (planned,) = plan_qemu(seen, NEW, None, policies=within(30.0), technique=wanted).guests
    return planned.technique, {blocker.reason for blocker in planned.blockers}


def test_a_guest_that_cannot_be_handed_over_is_held() -> None:
    assert technique_of(host(guests=(on_spice(),), hold_hook=True)) == (Technique.HOLD, set())
    assert technique_of(host(guests=(guest(),), hold_hook=True)) == (Technique.HANDOVER, set())


def test_one_that_could_be_held_is_told_what_is_missing_for_that() -> None:
    assert technique_of(host(guests=(on_spice(),))) == (None, {Reason.SPICE, Reason.HOST})


def test_only_the_technique_that_was_asked_for() -> None:
    seen = host(guests=(on_spice(),), hold_hook=True)
    assert technique_of(seen, Technique.HANDOVER) == (None, {Reason.SPICE})
    assert technique_of(host(guests=(guest(),), hold_hook=True), Technique.HOLD) == (Technique.HOLD, set())
    assert technique_of(host(guests=(guest(),)), Technique.HOLD) == (None, {Reason.HOST})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"state": GuestState.PAUSED_BY_OWNER}, Reason.STATE),
        ({"persistent": False}, Reason.STATE),
        ({"ram_files": ()}, Reason.RAM_ORDINARY),
        ({"checkpoints": 1}, Reason.FEATURE),
    ],
)
def test_what_cannot_be_held(changed: dict[str, object], reason: Reason) -> None:
    seen = host(guests=(guest(**changed),), hold_hook=True)
    technique, reasons = technique_of(seen, Technique.HOLD)
    assert technique is None
    assert reason in reasons


def test_what_stops_handovers_stops_no_hold() -> None:
    seen = host(guests=(guest(),), hold_hook=True, reconnect_hook=True)
    assert technique_of(seen) == (Technique.HOLD, set())
    assert plan_qemu(seen, NEW, None, policies=within(30.0)).blockers == ()
    stopped = plan_qemu(host(guests=(guest(),), reconnect_hook=True), NEW, None, policies=within(30.0))
    assert [blocker.reason for blocker in stopped.blockers] == [Reason.HOST]


def test_a_hold_is_predicted_from_holds() -> None:
    past = Past({"x": [0.02]}, {"x": [0.9, 0.7]})
    seen = host(guests=(guest(),), hold_hook=True)
    (held,) = plan_qemu(seen, NEW, None, policies=within(30.0), past=past, technique=Technique.HOLD).guests
    assert held.predicted and held.predicted.pause_seconds == 0.9

"""The exposition, read back as Prometheus reads it."""

import re

import pytest
from journals import MEASURED, Writer
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from hostagent import __version__
from hostagent.metrics.exposition import exposition
from hostagent.metrics.journal_figures import PAUSE_BUCKETS
from hostagent.metrics.table import METRICS, OF_JOURNAL
from hostagent.plan import Method, Technique
from hostagent.update.journal import Entry, Kind, Outcome
from hostagent.update.order import OrderKind


def samples(writer: Writer) -> list[Sample]:
    return [
        sample for family in text_string_to_metric_families(exposition(writer.records())) for sample in family.samples
    ]


def value(writer: Writer, name: str, **labels: str) -> float | None:
    found = [sample.value for sample in samples(writer) if sample.name == name and sample.labels == labels]
    assert len(found) <= 1
    return found[0] if found else None


PAUSES = {"method": "in-place", "technique": "handover", "component": "qemu"}


def test_an_empty_journal_gives_every_family_and_zeros() -> None:
    text = exposition([])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {declared.name.removesuffix("_total") for declared in OF_JOURNAL} == set(families)
    assert all(family.documentation for family in families.values())
    assert value(Writer(), "hostagent_build_info", version=__version__) == 1
    assert value(Writer(), "hostagent_guest_pause_seconds_count", **PAUSES) == 0
    assert value(Writer(), "hostagent_journal_open_updates") == 0
    assert "_created" not in text


def test_every_name_follows_the_rules() -> None:
    for declared in METRICS:
        assert re.fullmatch(r"hostagent_[a-z_]+", declared.name)
        assert (declared.kind.name == "COUNTER") == declared.name.endswith("_total")
        assert declared.help.endswith(".")


def test_pauses_fall_into_their_buckets() -> None:
    writer = Writer()
    for number, pause in enumerate((0.005, 0.0182, 0.3, 75.0)):
        writer.updated(f"u{number}", "web1", pause_seconds=pause)
    buckets = {
        sample.labels["le"]: sample.value
        for sample in samples(writer)
        if sample.name == "hostagent_guest_pause_seconds_bucket"
    }
    assert list(buckets) == [*(str(float(bound)) for bound in PAUSE_BUCKETS), "+Inf"]
    assert (buckets["0.005"], buckets["0.025"], buckets["0.5"], buckets["60.0"], buckets["+Inf"]) == (1, 2, 3, 3, 4)
    assert value(writer, "hostagent_guest_pause_seconds_count", **PAUSES) == 4
    assert value(writer, "hostagent_guest_pause_seconds_sum", **PAUSES) == pytest.approx(75.3232)
    assert value(writer, "hostagent_guest_last_pause_seconds", guest="web1", method="in-place") == 75.0
    assert value(writer, "hostagent_budget_exceeded_total", method="in-place") == 1


def test_a_reboot_counts_for_itself_and_as_no_pause() -> None:
    assert value(Writer(), "hostagent_guest_reboot_seconds_count", phase="down") == 0
    writer = Writer()
    writer.begin("u1", "web1", method=Method.REBOOT)
    writer.measured("u1", "web1", down_seconds=0.5, boot_seconds=7.0)
    writer.end_guest("u1", "web1", Outcome.UPDATED)
    writer.end("u1", Outcome.UPDATED)
    assert value(writer, "hostagent_guest_reboot_seconds_sum", phase="down") == 0.5
    assert value(writer, "hostagent_guest_reboot_seconds_sum", phase="boot") == 7.0
    labels = {"method": "reboot", "component": "qemu", "outcome": "updated"}
    assert value(writer, "hostagent_guest_updates_total", **labels) == 1
    assert value(writer, "hostagent_guest_pause_seconds_count", **PAUSES) == 0
    assert not [sample for sample in samples(writer) if sample.name == "hostagent_guest_last_pause_seconds"]


def test_phases_are_those_of_the_pause() -> None:
    writer = Writer()
    writer.updated("u1", "web1")
    for phase in ("switch", "record", "resume"):
        assert value(writer, "hostagent_pause_phase_seconds_count", phase=phase) == 1
        assert value(writer, "hostagent_pause_phase_seconds_sum", phase=phase) == pytest.approx(0.01)


def held(writer: Writer, *, swaps: tuple[str, ...] = ()) -> float:
    """A guest is held, for a swap or by itself, until it is told to go on; returns when it stood still."""
    writer.begin("u1", "web1", technique=Technique.HOLD, swaps=swaps)
    writer.steps("u1", "web1", "prepare", "pause")
    writer.now += 7.0  # the guard gets ready, and the guest runs on
    stopped = writer.now
    writer.append("u1", Entry(Kind.NOTED, "uuid of web1", body={"began_at": stopped}))
    writer.now += 0.5
    writer.steps("u1", "web1", "save")
    writer.now += 1.0
    for component in swaps:
        writer.append("u1", Entry(Kind.STEP_BEGUN, "", f"swap {component}"))
        writer.now += 4.0
    writer.steps("u1", "web1", "restore")
    writer.now += 2.0
    writer.steps("u1", "web1", "resume", "resume")  # meant for all at once, and then done for each
    return stopped


@pytest.mark.parametrize(("swaps", "swap"), [((), None), (("kvm",), 4.0), (("libvirtd", "kvm"), 8.0)])
def test_phases_of_a_hold_are_from_when_it_stands_still_to_the_end_of_its_pause(
    swaps: tuple[str, ...], swap: float | None
) -> None:
    writer = Writer()
    stopped = held(writer, swaps=swaps)
    pause = writer.now + 0.25 - stopped
    writer.steps("u1", "web1", "look")
    writer.measured("u1", "web1", pause_seconds=pause)
    writer.end_guest("u1", "web1", Outcome.UPDATED)
    writer.end("u1", Outcome.UPDATED)
    name = "hostagent_pause_phase_seconds"
    took = {
        sample.labels["phase"]: sample.value
        for sample in samples(writer)
        if sample.name == f"{name}_sum" and value(writer, f"{name}_count", **sample.labels)
    }
    parts = {"pause": 0.5, "save": 1.0, "swap": swap, "restore": 2.0, "resume": 0.25}
    assert took == pytest.approx({phase: part for phase, part in parts.items() if part}, abs=0.05)
    assert sum(took.values()) == pytest.approx(pause)


def test_a_held_guest_stands_still_from_the_moment_that_was_noted() -> None:
    writer = Writer()
    stopped = held(writer)
    assert paused(writer) == {"web1": stopped}
    writer.append("u1", Entry(Kind.STEP_DONE, "uuid of web1", "resume"))
    assert paused(writer) == {}


def test_a_guest_that_is_about_to_be_held_runs() -> None:
    writer = Writer()
    writer.begin("u1", "web1", technique=Technique.HOLD)
    writer.append("u1", Entry(Kind.NOTED, "uuid of web1", body={"began_at": 0.0}))
    writer.steps("u1", "web1", "prepare", "pause")
    assert paused(writer) == {}


def test_clocks_are_those_of_the_last_update() -> None:
    writer = Writer()
    writer.updated("u1", "web1", clock_synced_seconds=5.0)
    writer.updated("u2", "web1")
    found = {
        when: value(writer, "hostagent_guest_clock_offset_seconds", guest="web1", when=when)
        for when in ("before", "resumed", "synced")
    }
    assert found == {"before": 0.0003, "resumed": -0.018, "synced": -0.0001}
    assert value(writer, "hostagent_guest_clock_bound_seconds", guest="web1") == 0.0006


def test_a_clock_that_the_last_update_could_not_read_has_none_of_an_earlier_one() -> None:
    writer = Writer()
    writer.updated("u1", "web1")
    unread = {name: None for name in MEASURED if name.startswith("clock_")}
    writer.updated("u2", "web1", **unread | {"clock_outcome": "uncorrected", "clock_reason": "no-agent"})
    assert not [sample for sample in samples(writer) if sample.name.startswith("hostagent_guest_clock_offset")]
    assert value(writer, "hostagent_guest_clock_bound_seconds", guest="web1") is None


@pytest.mark.parametrize(
    ("written", "label"), [("no-agent", "no-agent"), ("paused", "paused"), ("asking it: a long\nstory", "other")]
)
def test_a_clock_that_was_left_as_it_was_is_told_with_a_bounded_reason(written: str, label: str) -> None:
    name = "hostagent_guest_clock_uncorrected"
    writer = Writer()
    writer.updated("u1", "web1", "db9", clock_outcome="uncorrected", clock_reason=written)
    assert value(writer, name, guest="web1", reason=label) == 1
    writer.updated("u2", "web1")
    assert [sample.labels["guest"] for sample in samples(writer) if sample.name == name] == ["db9"]


def outcomes(writer: Writer) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for sample in samples(writer)
        if sample.name == "hostagent_guest_updates_total" and sample.value
    }


def test_each_guest_counts_once_however_often_it_was_tried() -> None:
    writer = Writer()
    writer.updated("u1", "web1", "db9")
    writer.begin("u2", "web1", "db9")
    writer.end_guest("u2", "db9", Outcome.NEEDS_OPERATOR, "stuck", "needs-operator")
    writer.end_guest("u2", "web1", Outcome.ROLLED_BACK, "no", "failed")
    assert outcomes(writer) == {"updated": 2, "rolled-back": 1}  # not yet db9: a counter may never go back
    assert value(writer, "hostagent_journal_open_updates") == 1
    writer.end_guest("u2", "db9", Outcome.UPDATED)  # by recovery
    writer.end("u2", Outcome.ROLLED_BACK, "no")
    assert outcomes(writer) == {"updated": 3, "rolled-back": 1}
    assert value(writer, "hostagent_journal_open_updates") == 0
    assert value(writer, "hostagent_rollbacks_total", reason="failed") == 1
    assert value(writer, "hostagent_guest_pause_seconds_count", **PAUSES) == 2  # nobody saw the recovered one's


@pytest.mark.parametrize(("kind", "label"), [("failed", "failed"), ("", "other"), ("whatever\n", "other")])
def test_reasons_are_bounded(kind: str, label: str) -> None:
    writer = Writer()
    writer.begin("u1", "web1")
    writer.end_guest("u1", "web1", Outcome.ROLLED_BACK, "a long story", kind)
    writer.end("u1", Outcome.ROLLED_BACK)
    assert value(writer, "hostagent_rollbacks_total", reason=label) == 1


def test_rehearsals_count_for_themselves_alone() -> None:
    writer = Writer()
    writer.updated("u1-rehearsal", "throw-away", kind=OrderKind.REHEARSAL, pause_seconds=50.0)
    assert value(writer, "hostagent_rehearsals_total", outcome="updated") == 1
    assert value(writer, "hostagent_guest_pause_seconds_count", **PAUSES) == 0
    assert outcomes(writer) == {}
    assert not [sample for sample in samples(writer) if "guest" in sample.labels]
    assert not [sample for sample in samples(writer) if sample.name == "hostagent_last_update_timestamp_seconds"]


def test_the_last_update_of_each_outcome_has_its_time() -> None:
    writer = Writer()
    writer.updated("u1", "web1")
    writer.updated("u2", "web1")
    assert value(writer, "hostagent_last_update_timestamp_seconds", outcome="updated") == pytest.approx(writer.now)


def test_a_hostile_name_stays_inside_its_label() -> None:
    name = 'x"} 1\nhostagent_fake{a="\\\x1b[2J\u202e'
    writer = Writer()
    writer.updated("u1", name)
    assert not [sample for sample in samples(writer) if sample.name == "hostagent_fake"]
    found = [
        sample.labels["guest"] for sample in samples(writer) if sample.name == "hostagent_guest_last_pause_seconds"
    ]
    assert found == ['x"} 1\\nhostagent_fake{a="\\\\x1b[2J\\u202e']
    assert exposition(writer.records()).replace("\n", "").isprintable()


def test_names_that_look_alike_do_not_spoil_the_scrape() -> None:
    writer = Writer()
    writer.updated("u1", "web\x1b")
    writer.updated("u2", "web\\x1b")
    found = [tuple(sorted(sample.labels.items())) for sample in samples(writer) if sample.labels.get("guest")]
    names = [sample.name for sample in samples(writer) if sample.labels.get("guest")]
    pairs = list(zip(names, found, strict=True))
    assert len(pairs) == len(set(pairs))


def paused(writer: Writer) -> dict[str, float]:
    name = "hostagent_guest_paused_since_timestamp_seconds"
    return {sample.labels["guest"]: sample.value for sample in samples(writer) if sample.name == name}


def test_a_guest_stands_still_from_its_pause_until_it_goes_on() -> None:
    writer = Writer()
    writer.begin("u1", "web1", "db9")
    writer.steps("u1", "web1", "prepare", "start", "reconcile")
    assert paused(writer) == {}
    writer.steps("u1", "web1", "switch")
    began = writer.now
    writer.steps("u1", "web1", "record", "resume")
    assert paused(writer) == {"web1": pytest.approx(began)}  # it was asked to go on; nobody knows whether it does
    writer.append("u1", Entry(Kind.STEP_DONE, "uuid of web1", "resume"))
    assert paused(writer) == {}


def test_a_guest_whose_pause_was_undone_runs() -> None:
    writer = Writer()
    writer.begin("u1", "web1")
    writer.steps("u1", "web1", "switch")
    writer.append("u1", Entry(Kind.UNDO_BEGUN, "uuid of web1", "switch"))
    assert list(paused(writer)) == ["web1"]
    writer.append("u1", Entry(Kind.UNDO_DONE, "uuid of web1", "switch"))
    assert paused(writer) == {}


def test_one_that_waits_for_a_person_stands_still_until_its_update_has_ended() -> None:
    writer = Writer()
    writer.begin("u1", "web1")
    writer.steps("u1", "web1", "switch")
    began = writer.now
    writer.end_guest("u1", "web1", Outcome.NEEDS_OPERATOR, "stuck", "needs-operator")
    assert paused(writer) == {"web1": pytest.approx(began)}
    assert state(writer) == "needs-operator"
    writer.end_guest("u1", "web1", Outcome.LOST)
    assert paused(writer) == {}
    writer.end("u1", Outcome.LOST)
    assert state(writer) == "idle"


def test_nobody_stands_still_for_a_rehearsal_or_a_reboot() -> None:
    writer = Writer()
    writer.begin("u1-rehearsal", "throw-away", kind=OrderKind.REHEARSAL)
    writer.steps("u1-rehearsal", "throw-away", "switch")
    assert state(writer) == "rehearsing"
    writer.begin("u2", "web1", method=Method.REBOOT)
    writer.steps("u2", "web1", "shut down")
    assert paused(writer) == {}
    assert state(writer) == "updating"


def state(writer: Writer) -> str:
    """What goes on; exactly one thing does."""
    found = [
        sample.labels["state"]
        for sample in samples(writer)
        if sample.name == "hostagent_update_state" and sample.value == 1
    ]
    assert len(found) == 1
    return found[0]


def test_a_guest_that_goes_on_down_its_ladder_fell_back_once() -> None:
    writer = Writer()
    writer.begin("u1", "web1", roll="r1")
    writer.end_guest("u1", "web1", Outcome.ROLLED_BACK, "no", "failed")
    writer.end("u1", Outcome.ROLLED_BACK)
    fell = {"from": "in-place", "to": "reboot", "reason": "failed"}
    assert value(writer, "hostagent_fallbacks_total", **fell) == 0
    writer.begin("u2", "web1", roll="r1", method=Method.REBOOT)
    assert value(writer, "hostagent_fallbacks_total", **fell) == 1
    writer.end_guest("u2", "web1", Outcome.UPDATED)
    writer.end("u2", Outcome.UPDATED)
    assert value(writer, "hostagent_fallbacks_total", **fell) == 1
    writer.begin("u3", "web1", roll="r2", method=Method.LIVE_MIGRATE)  # another day
    assert value(writer, "hostagent_fallbacks_total", **fell) == 1


def test_budgets_are_those_of_the_last_update() -> None:
    writer = Writer()
    writer.updated("u1", "web1")
    assert value(writer, "hostagent_guest_budget_seconds", guest="web1") == 10.0

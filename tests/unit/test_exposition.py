"""Folding on is folding the whole, names can be hidden, and memory has an end."""

import pickle
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import HANDOVER, MEASURED, Writer
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from sampled import guest, host, within

from hostagent.metrics.exposition import LABEL_LIMIT, Exposition, Names, exposition
from hostagent.metrics.guest_figures import KEPT
from hostagent.metrics.journal_fold import JournalFold
from hostagent.observed import observe
from hostagent.plan import Method, Technique
from hostagent.update.journal import Entry, Kind, Outcome, Row, SqliteJournal, fold
from hostagent.update.journal_tail import JournalTail
from hostagent.update.order import OrderKind

NAMES = ("web1", "web2", "db9", "we\x1b")


def samples(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples(text)}


@st.composite
def journals(draw: st.DrawFn) -> list[Row]:
    """Updates one after the other, some broken off anywhere, some of a roll, some of another version's."""
    writer = Writer()
    for number in range(draw(st.integers(0, 6))):
        _update(draw, writer, f"u{number}")
    return writer.rows


def _update(draw: st.DrawFn, writer: Writer, update: str) -> None:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    kind = draw(st.sampled_from(OrderKind))
    method, technique = draw(st.sampled_from(Method)), draw(st.sampled_from(Technique))
    roll = draw(st.sampled_from(("", "r1", "r2")))
    writer.begin(update, *names, kind=kind, method=method, technique=technique, roll=roll)
    if draw(st.integers(0, 9)) == 0:
        writer.append(update, Entry(Kind.UPDATE_BEGUN, body={"kind": "from the future"}))
    steps = HANDOVER if technique is Technique.HANDOVER else ("prepare", "pause", "save", "restore", "resume", "look")
    for name in names:
        for step in steps[: draw(st.integers(0, len(steps)))]:
            writer.steps(update, name, step)
            if draw(st.booleans()):
                done = draw(st.sampled_from((Kind.STEP_DONE, Kind.UNDO_DONE, Kind.STEP_FAILED)))
                writer.append(update, Entry(done, f"uuid of {name}", step))
        pause = draw(st.floats(0.0, 90.0))
        writer.measured(update, name, **{**MEASURED, "pause_seconds": pause, "down_seconds": pause / 3})
        for _ in range(draw(st.integers(0, 2))):  # one that waited for a person is ended twice
            reason = draw(st.sampled_from(("failed", "refused", "whatever")))
            writer.end_guest(update, name, draw(st.sampled_from(Outcome)), "why", reason)
    if draw(st.booleans()):
        ended = [outcome for outcome in Outcome if outcome is not Outcome.NEEDS_OPERATOR]
        writer.end(update, draw(st.sampled_from(ended)))
        writer.append(update, Entry(Kind.NOTED, body={"roll_stopped": "why"}))


@given(rows=journals(), cuts=st.lists(st.integers(0, 400)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_folding_on_is_folding_the_whole(rows: list[Row], cuts: list[int]) -> None:
    folded, begin = JournalFold(), 0
    for cut in sorted({min(cut, len(rows)) for cut in cuts} | {len(rows)}):
        folded.take(rows[begin:cut])
        begin = cut
        so_far = JournalFold()
        so_far.take_records(fold(rows[:cut]))
        assert folded.figures() == so_far.figures()


@given(rows=journals(), cuts=st.lists(st.integers(0, 400), max_size=3), at_once=st.integers(1, 50))
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
def test_every_scrape_says_what_the_journal_says(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], cuts: list[int], at_once: int
) -> None:
    path = tmp_path_factory.mktemp("state") / "journal.sqlite"
    moments = iter([row.at for row in rows])
    journal = SqliteJournal(path, "boot", lambda: next(moments))
    scraped, begin = Exposition(JournalTail(path, at_once), Names.SHOWN), 0
    for cut in sorted({min(cut, len(rows)) for cut in cuts} | {len(rows)}):
        for update, some in groupby(rows[begin:cut], key=lambda row: row.update):
            journal.append(update, *(row.entry for row in some))
        begin = cut
        for _ in range(2):
            assert values(scraped.text(None)) == values(exposition(fold(rows[:cut])))
    journal.close()


def test_a_journal_that_was_replaced_is_counted_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    scraped = Exposition(JournalTail(path), Names.SHOWN)
    for names in (("web1", "web2"), ("db9",)):
        writer = Writer()
        writer.updated("u1", *names)
        path.unlink(missing_ok=True)
        writer.save(path)
        assert scraped.text(None) == exposition(writer.records())
    path.unlink()
    assert scraped.text(None) == exposition([])


def test_memory_grows_by_guests_and_not_by_updates() -> None:
    def size_after(updates: int) -> int:
        folded, writer = JournalFold(), Writer()
        for number in range(updates):
            writer.updated(f"u{number}", "web1", "web2")
            folded.take(writer.rows)
            writer.rows.clear()
        return len(pickle.dumps(folded))

    assert size_after(400) - size_after(100) < 100  # longer numbers


def test_of_too_many_guests_those_of_long_ago_are_forgotten() -> None:
    folded, writer = JournalFold(), Writer()
    for number in range(KEPT + 10):
        writer.updated(f"u{number}", f"web{number}")
    folded.take(writer.rows)
    names = [name for name, _ in folded.figures().guests]
    assert names == [f"web{number}" for number in range(10, KEPT + 10)]
    assert folded.figures().guest_updates["in-place", "qemu", "updated"] == KEPT + 10


def hidden(writer: Writer, *guests: object) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    seen = observe(host(guests=guests), [], within(30.0), at=1.0)
    text = exposition(writer.records(), seen, Names.HIDDEN)
    assert not [name for name in ("web1", "web2", "db9", "prealloc") if name in text]
    return values(text)


def test_without_names_there_is_one_figure_for_all_guests() -> None:
    writer = Writer()
    writer.updated("u1", "web1", pause_seconds=1.0)
    writer.updated("u2", "db9", pause_seconds=2.0)
    writer.begin("u3", "web1", "web2")
    writer.steps("u3", "web2", "switch")
    began = writer.now
    writer.steps("u3", "web1", "switch")
    found = hidden(writer, guest("prealloc"), replace(guest("prealloc"), name="prealloc2"))
    nobody = ("guest", "")
    last = ("hostagent_guest_last_pause_seconds", frozenset({nobody, ("method", "in-place")}))
    since = ("hostagent_guest_paused_since_timestamp_seconds", frozenset({nobody}))
    against = ("hostagent_guest_blockers", frozenset({nobody, ("method", "in-place"), ("reason", "ram-file")}))
    assert found[last] == 2.0
    assert found[since] == pytest.approx(began)
    assert found[against] == 2


def test_hiding_names_gives_the_figure_of_whoever_was_last_each_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    writer = Writer()
    scraped = Exposition(JournalTail(path), Names.HIDDEN)
    last = ("hostagent_guest_last_pause_seconds", frozenset({("guest", ""), ("method", "in-place")}))
    for update, name, pause in (("u1", "web1", 1.0), ("u2", "db9", 2.0), ("u3", "web1", 1.0)):
        writer.updated(update, name, pause_seconds=pause)
        path.unlink(missing_ok=True)
        writer.save(path)
        assert values(scraped.text(None))[last] == pause


@pytest.mark.parametrize(
    "name",
    [
        'x"} 1\nhostagent_fake{a="',
        "x\\",
        "\x00\x1b[2J\u202e\r\n# HELP hostagent_fake no\n",
        "[bold]x[/bold]{{ $labels.x }}",
        "\udcff\ud800",
        "x" * 100_000,
        "\x1b" * 100_000,
        "",
    ],
)
def test_a_hostile_name_does_no_harm(name: str) -> None:
    writer = Writer()
    writer.updated("u1", name)
    text = exposition(writer.records())
    assert text.replace("\n", "").isprintable()
    text.encode()
    found = [sample for sample in samples(text) if "guest" in sample.labels]
    assert {sample.name for sample in found} <= {line.split("{")[0] for line in text.splitlines()}
    assert not [sample for sample in samples(text) if "fake" in sample.name]
    assert {sample.labels["guest"] for sample in found} and len(text) < 50_000
    assert all(len(sample.labels["guest"]) <= LABEL_LIMIT for sample in found)


@pytest.mark.parametrize("value", ["1", True, None, [1.0], {"a": 1}, 10**400, float("inf"), float("nan"), -1e308])
def test_a_measurement_of_the_wrong_kind_does_no_harm(value: object) -> None:
    writer = Writer()
    writer.updated("u1", "web1", **dict.fromkeys(MEASURED, value), down_seconds=value, boot_seconds=value)
    found = values(exposition(writer.records()))
    total = ("hostagent_guest_pause_seconds_sum", frozenset({*LABELS}))
    assert found[total] == 0.0


LABELS = {("method", "in-place"), ("technique", "handover"), ("component", "qemu")}

"""The engine: forward, again after a crash, lost answers, back, and a journal that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from hostagent.errors import Failed, HostagentError, NeedsOperator, OutcomeUnknown
from hostagent.update.journal import Entry, Kind, Progress, Row, fold
from hostagent.update.saga import Engine, Step, StepFailed, committed


@dataclass
class Subject:
    """A guest that remembers what was done to it."""

    key: str = "uuid"
    update: str = "u1"
    world: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@dataclass
class Paper:
    """A journal on paper, that may refuse some rows."""

    refuses: Callable[[Entry], bool] = lambda _: False
    commits: list[tuple[Entry, ...]] = field(default_factory=list)

    def append(self, update: str, *entries: Entry) -> None:
        if any(self.refuses(entry) for entry in entries):
            raise Failed("writing the journal", found="full")
        if entries:
            self.commits.append(entries)

    def rows(self) -> Sequence[Row]:
        begun = Entry(Kind.UPDATE_BEGUN), Entry(Kind.GUEST_BEGUN, "uuid", body={"name": "web1"})
        written = [*begun, *(entry for entries in self.commits for entry in entries)]
        return [Row(n, 0.0, "boot", "u1", entry) for n, entry in enumerate(written)]

    def words(self) -> list[str]:
        return ["+".join(f"{entry.kind}:{entry.step}" for entry in entries) for entries in self.commits]

    def progress(self) -> Progress:
        return fold(self.rows())[0].guests["uuid"].progress


def step(
    name: str,
    *,
    commits: bool = False,
    error: Exception | None = None,
    does: bool = True,
    undo_error: Exception | None = None,
) -> Step[Subject]:
    def do(subject: Subject) -> None:
        subject.calls.append(name)
        if does:
            subject.world.append(name)
        if error:
            raise error

    def undo(subject: Subject) -> None:
        subject.calls.append(f"undo {name}")
        if undo_error:
            raise undo_error
        subject.world = [done for done in subject.world if done != name]

    return Step(name, do, lambda subject: name in subject.world, undo=undo, commits=commits)


def engine(paper: Paper, cancelled: Callable[[], bool] = lambda: False) -> Engine:
    return Engine(paper, lambda *_: None, cancelled)


NOTHING = Progress()


def failing(table: Sequence[Step[Subject]], paper: Paper, progress: Progress = NOTHING) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        engine(paper).forward(table, Subject(), progress)
    return caught.value


# -- forward -------------------------------------------------------------------------------------------------


def test_done_and_the_next_begun_are_one_commit() -> None:
    paper, subject = Paper(), Subject()
    progress = engine(paper).forward([step("a"), step("b")], subject, NOTHING)
    assert paper.words() == ["step-begun:a", "step-done:a+step-begun:b", "step-done:b"]
    assert subject.calls == ["a", "b"]
    assert progress == paper.progress()
    assert (progress.begun, progress.done) == (("a", "b"), {"a", "b"})


def test_nothing_to_do_writes_nothing() -> None:
    paper = Paper()
    done = Progress(("a",), frozenset({"a"}))
    assert engine(paper).forward([step("a")], Subject(), done) == done
    assert paper.commits == []


def test_begun_is_durable_before_anything_is_done() -> None:
    paper, seen = Paper(), []
    watched = Step[Subject]("a", lambda _: seen.append(paper.words()[-1]), lambda _: True)
    engine(paper).forward([watched], Subject(), NOTHING)
    assert seen == ["step-begun:a"]


def test_a_failing_step_is_written_down_and_says_how_far_it_got() -> None:
    paper = Paper()
    failed = failing([step("a"), step("b", error=Failed("doing b", found="trouble")), step("c")], paper)
    assert (failed.step, str(failed.error)) == ("b", "doing b: trouble")
    assert failed.progress == paper.progress()
    assert failed.progress.open == ("a", "b")
    assert failed.progress.done == {"a"}
    assert paper.words()[-1] == "step-failed:b"


def test_a_step_without_effect_fails() -> None:
    failed = failing([step("a", does=False)], Paper())
    assert "expected its effect to show afterwards" in str(failed.error)


def test_what_the_system_refuses_fails_like_anything_else() -> None:
    failed = failing([step("a", error=OSError(28, "No space left on device"))], Paper())
    assert isinstance(failed.error, Failed)
    assert "No space left" in str(failed.error)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        engine(Paper()).forward([step("a", error=ZeroDivisionError())], Subject(), NOTHING)


# -- again, after a crash ------------------------------------------------------------------------------------


def test_begun_before_and_done_in_the_world_is_not_done_twice() -> None:
    subject = Subject(world=["a"])
    progress = engine(Paper()).forward([step("a"), step("b")], subject, Progress(("a",)))
    assert subject.calls == ["b"]
    assert progress.done == {"a", "b"}


def test_begun_before_and_not_done_in_the_world_is_done() -> None:
    subject = Subject()
    engine(Paper()).forward([step("a")], subject, Progress(("a",)))
    assert subject.calls == ["a"]


def test_never_begun_is_done_even_if_the_world_looks_so() -> None:
    """`is_done` may be true by chance before a step began; only a begun step may be taken for done."""
    subject = Subject(world=["a"])
    engine(Paper()).forward([step("a")], subject, NOTHING)
    assert subject.calls == ["a"]


def test_an_undone_step_that_begins_again_is_open_again() -> None:
    undone = Progress(("a",), frozenset(), frozenset({"a"}))
    paper = Paper()
    paper.commits.append((Entry(Kind.STEP_BEGUN, "uuid", "a"), Entry(Kind.UNDO_DONE, "uuid", "a")))
    progress = engine(paper).forward([step("a")], Subject(), undone)
    assert paper.progress().open == ("a",)
    assert progress == paper.progress()


# -- no answer -----------------------------------------------------------------------------------------------


def test_no_answer_but_done() -> None:
    progress = engine(Paper()).forward([step("a", error=OutcomeUnknown("asking"))], Subject(), NOTHING)
    assert progress.done == {"a"}


def test_no_answer_and_not_done() -> None:
    unknown = OutcomeUnknown("asking", expected="an answer", found="none", hint="look")
    failed = failing([step("a", error=unknown, does=False)], Paper())
    assert type(failed.error) is Failed
    assert str(failed.error) == "asking: expected an answer, found none (hint: look)"


@pytest.mark.parametrize("first", [None, OutcomeUnknown("doing")])
def test_no_answer_to_whether_it_is_done_leaves_the_engine_as_a_failure(first: Exception | None) -> None:
    def unknown(_: Subject) -> bool:
        raise OutcomeUnknown("asking whether")

    def do(_: Subject) -> None:
        if first:
            raise first

    failed = failing([Step("a", do, unknown)], Paper())
    assert type(failed.error) is Failed
    assert str(failed.error) == "asking whether"


# -- asked to stop -------------------------------------------------------------------------------------------


def test_cancelled_between_steps() -> None:
    paper, subject = Paper(), Subject()
    table = [step("a"), step("b"), step("c", commits=True)]
    with pytest.raises(StepFailed) as caught:
        engine(paper, lambda: "a" in subject.world).forward(table, subject, NOTHING, stoppable=True)
    assert subject.calls == ["a"]
    assert caught.value.progress == paper.progress()
    assert paper.progress().done == {"a"}


def test_not_stopped_after_the_commit() -> None:
    subject = Subject()
    table = [step("a", commits=True), step("b")]
    engine(Paper(), lambda: "a" in subject.world).forward(table, subject, NOTHING, stoppable=True)
    assert subject.calls == ["a", "b"]


def test_a_table_that_does_not_stop() -> None:
    subject = Subject()
    engine(Paper(), lambda: True).forward([step("a")], subject, NOTHING)
    assert subject.calls == ["a"]


def test_committed_by_begun_alone() -> None:
    table = [step("a"), step("b", commits=True)]
    assert not committed(table, Progress(("a",), frozenset({"a"})))
    assert committed(table, Progress(("a", "b"), frozenset({"a"})))


# -- back ----------------------------------------------------------------------------------------------------


def test_undone_newest_first_in_the_order_of_doing() -> None:
    subject, paper = Subject(world=["b", "a"]), Paper()
    engine(paper).back([step("a"), step("b")], subject, Progress(("b", "a")))
    assert subject.calls == ["undo a", "undo b"]
    assert paper.words() == ["undo-begun:a", "undo-done:a", "undo-begun:b", "undo-done:b"]


def test_what_may_have_begun_is_undone() -> None:
    subject = Subject()
    engine(Paper()).back([step("a"), step("b")], subject, Progress(("a", "b"), frozenset({"a"})))
    assert subject.calls == ["undo b", "undo a"]


def test_what_was_undone_is_left_alone() -> None:
    subject = Subject()
    engine(Paper()).back([step("a"), step("b")], subject, Progress(("a", "b"), frozenset(), frozenset({"b"})))
    assert subject.calls == ["undo a"]


def test_steps_of_other_tables_and_without_undo_are_passed_over() -> None:
    subject = Subject()
    lasting = Step[Subject]("b", lambda _: None, lambda _: True)
    engine(Paper()).back([step("a"), lasting], subject, Progress(("a", "b", "c")))
    assert subject.calls == ["undo a"]


@pytest.mark.parametrize(
    "error", [Failed("undoing", found="no"), OutcomeUnknown("undoing", found="no"), OSError(5, "no")], ids=repr
)
def test_an_undo_that_fails_stops_the_rest(error: Exception) -> None:
    subject, paper = Subject(), Paper()
    with pytest.raises(NeedsOperator) as caught:
        engine(paper).back([step("a"), step("b", undo_error=error)], subject, Progress(("a", "b")))
    assert subject.calls == ["undo b"]
    assert "undoing step b" in str(caught.value)
    assert "no" in str(caught.value)
    assert caught.value.hint == "hostagent recover"
    assert paper.words() == ["undo-begun:b"]


def test_the_hint_of_what_failed_is_kept() -> None:
    error = NeedsOperator("ending it", found="stuck", hint="once its disk answers")
    with pytest.raises(NeedsOperator) as caught:
        engine(Paper()).back([step("a", undo_error=error)], Subject(), Progress(("a",)))
    assert caught.value.hint == "once its disk answers"


# -- a journal that fails ------------------------------------------------------------------------------------


def refusing(kind: Kind, name: str) -> Callable[[Entry], bool]:
    return lambda entry: entry.kind is kind and entry.step == name


def test_no_begun_no_step() -> None:
    paper, subject = Paper(refusing(Kind.STEP_BEGUN, "b")), Subject()
    with pytest.raises(StepFailed) as caught:
        engine(paper).forward([step("a"), step("b")], subject, NOTHING)
    assert subject.calls == ["a"]
    assert caught.value.progress.open == ("a",)


def test_no_intent_no_commit() -> None:
    table = [step("a"), step("b", commits=True)]
    failed = failing(table, Paper(refusing(Kind.STEP_BEGUN, "b")))
    assert not committed(table, failed.progress)


@pytest.mark.parametrize("kind", [Kind.STEP_DONE, Kind.STEP_FAILED])
def test_what_nothing_depends_on_may_be_lost(kind: Kind) -> None:
    paper = Paper(refusing(kind, "a"))
    if kind is Kind.STEP_DONE:
        assert engine(paper).forward([step("a")], Subject(), NOTHING).done == {"a"}
    else:
        assert str(failing([step("a", error=Failed("a"))], paper).error) == "a"


def test_undo_goes_on_without_a_journal() -> None:
    subject = Subject(world=["a", "b"])
    engine(Paper(lambda _: True)).back([step("a"), step("b")], subject, Progress(("a", "b")))
    assert subject.world == []


def test_whoever_watches_hears_of_a_journal_that_fails() -> None:
    heard: list[tuple[str, str, str]] = []

    def tell(key: str, name: str, doing: str) -> None:
        heard.append((key, name, doing))

    Engine(Paper(lambda _: True), tell, lambda: False).back([step("a")], Subject(), Progress(("a",)))
    assert ("uuid", "journal", "writing the journal: full") in heard


def test_every_error_of_ours_is_caught() -> None:
    for error in (Failed("x"), NeedsOperator("x"), HostagentError("x")):
        assert failing([step("a", error=error)], Paper()).error is error

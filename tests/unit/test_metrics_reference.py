"""docs/metrics.md says what there is: every metric, and every value that a bounded label may have."""

import re
from pathlib import Path

import pytest

from hostagent.facts import Freshness, GuestState
from hostagent.metrics.guest_figures import CLOCK_REASONS, OTHER
from hostagent.metrics.journal_figures import FINAL, PAUSE_BUCKETS, PAUSE_PHASES, ROLLBACK_REASONS, State
from hostagent.metrics.look_figures import label
from hostagent.metrics.table import OF_JOURNAL, OF_LOOK, Declared
from hostagent.plan import Method, Reason, Technique

REFERENCE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")


def row(declared: Declared) -> str:  # type: ignore[type-arg]
    labels = ", ".join(f"`{name}`" for name in declared.labels) or "–"
    return f"| `{declared.name}` | {declared.kind.name.lower()} | {labels} | {declared.help} |"


@pytest.mark.parametrize(
    ("heading", "declared"), [("## From the journal", OF_JOURNAL), ("## From a look at the host", OF_LOOK)]
)
def test_each_metric_has_its_row_and_there_are_no_others(heading: str, declared: tuple[Declared, ...]) -> None:  # type: ignore[type-arg]
    section = REFERENCE.split(heading)[1].split("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `hostagent_")] == [row(one) for one in declared]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("method", list(Method)),
        ("technique", [*Technique, "none", "unknown"]),
        ("outcome", list(FINAL)),
        ("reason of blockers", list(Reason)),
        ("reason of rollbacks and fallbacks", [*ROLLBACK_REASONS, OTHER]),
        ("reason of clocks", [*CLOCK_REASONS, OTHER]),
        ("phase of pauses", list(PAUSE_PHASES)),
        ("state of guests", [label(state) for state in GuestState]),
        ("state of updates", list(State)),
        ("freshness", [label(one) for one in Freshness]),
        ("le", [f"{bound:g}" for bound in PAUSE_BUCKETS]),
    ],
)
def test_each_value_of_a_label_is_named(name: str, values: list[str]) -> None:
    line = next(line for line in REFERENCE.splitlines() if line.startswith(f"| {name} |"))
    assert re.findall(r"`([^`]+)`", line.split(" | ")[1]) == values


def test_nothing_is_said_of_a_metric_that_there_is_not() -> None:
    known = {declared.name for declared in (*OF_JOURNAL, *OF_LOOK)}
    series = {name + suffix for name in known for suffix in ("", "_bucket", "_sum", "_count")}
    assert set(re.findall(r"hostagent_[a-z_]+", REFERENCE)) - series == set()

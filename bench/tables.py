"""What was measured, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from bench.series import Series, single

COLUMNS = (
    *("method", "RAM MiB", "guests", "load", "n", "median ms", "p95 ms"),
    *("of the limit", "of a save and restore", "slowest second"),
)
_WORDS = {"method", "load", "aim"}


def rows(found: Sequence[Series]) -> list[tuple[str, ...]]:
    """One for each series, the shortest pause of those that are alike first."""
    medians = {of: one.median for of, one in single(found).items()}
    ordered = sorted(found, key=lambda one: (one.of.guests, one.of.load != "idle", one.of.ram_mib, one.median))
    return [_row(one, medians) for one in ordered]


def _row(one: Series, medians: Mapping[tuple[str, int], float]) -> tuple[str, ...]:
    limit, saved = (
        medians.get((method, one.of.ram_mib)) if one.of.guests == 1 else None for method in ("limit", "save_restore")
    )
    return (
        one.of.method,
        f"{one.of.ram_mib}",
        f"{one.of.guests}",
        one.of.load,
        f"{len(one.felt)}",
        f"{one.median * 1000:.1f}",
        f"{one.p95 * 1000:.1f}",
        f"{one.median / limit:.2f}" if limit else "",
        f"{one.median / saved:.3g}" if saved else "",
        f"{min(one.slowest) * 100:.0f} %" if one.slowest else "",
    )


def shown(title: str, columns: Iterable[str], found: Iterable[Sequence[str]]) -> Table:
    """On a terminal."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right")
    for row in found:
        table.add_row(*row)
    return table


def markdown(columns: Sequence[str], found: Iterable[Sequence[str]]) -> str:
    """For a page."""
    rule = ["---" if column in _WORDS else "--:" for column in columns]
    return "".join(f"| {' | '.join(row)} |\n" for row in (columns, rule, *found))

"""Figures as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

NONE = "–"


def size(count: int) -> str:
    """Bytes in the largest unit that keeps them readable: 512 MiB, 1.5 GiB."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value == int(value) or value >= 100 else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """18.2 ms, 1.25 s, 3 min 20 s."""
    if seconds is None:
        return NONE
    if abs(seconds) < 1:
        return f"{_short(seconds * 1000)} ms"
    if abs(seconds) < 60:
        figures = f"{seconds:.2f}" if abs(seconds) < 10 else f"{seconds:.1f}"
        return figures.rstrip("0").rstrip(".") + " s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s"


def offset(seconds: float | None, bound: float | None = None) -> str:
    """A clock's offset with its sign, and how far off that may be: -0.2 ±0.4 ms."""
    if seconds is None:
        return NONE
    in_ms = abs(seconds) < 1
    scale, unit = (1000, "ms") if in_ms else (1, "s")
    around = "" if bound is None else f" ±{_short(bound * scale)}"
    return f"{'-' if seconds < 0 else '+'}{_short(abs(seconds) * scale)}{around} {unit}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def moment(at: float) -> str:
    """Unix time in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def counted(number: int, thing: str) -> str:
    """1 guest, 2 guests."""
    return f"{number} {thing}{'' if number == 1 else 's'}"

"""Shapes on a sheet, as the text of an SVG file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

INK, DIM, FAINT, EDGE, PAPER, DESK = "#24292e", "#6a6f76", "#e7e9ec", "#d5d8dc", "#ffffff", "#f3f4f6"
CHARACTER = 0.56
"""Width of a character in the mean, as a share of its size."""


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels from the upper left."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def inside(self, left: float, top: float, right: float, bottom: float) -> Box:
        """What is left of it within margins."""
        return Box(self.x + left, self.y + top, self.width - left - right, self.height - top - bottom)


@dataclass
class Sheet:
    """What has been drawn so far."""

    width: float
    height: float
    shapes: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 11,
        colour: str = INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.shapes.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def rectangle(self, box: Box, fill: str, *, edge: str = "", rounded: float = 0, opacity: float = 1) -> None:
        more = f' stroke="{edge}"' if edge else ""
        more += f' rx="{rounded:g}"' if rounded else ""
        more += f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self.shapes.append(
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{max(box.width, 0):.1f}" height="{max(box.height, 0):.1f}"'
            f' fill="{fill}"{more}/>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, width: float = 1, dash: str = "") -> None:
        more = f' stroke-dasharray="{dash}"' if dash else ""
        pairs = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline points="{pairs}" fill="none" stroke="{colour}" stroke-width="{width:g}"{more}/>')

    def area(self, points: Sequence[tuple[float, float]], fill: str, *, opacity: float) -> None:
        pairs = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polygon points="{pairs}" fill="{fill}" fill-opacity="{opacity:g}"/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 3) -> None:
        self.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>')

    @contextmanager
    def titled(self, words: str) -> Iterator[None]:
        """What is drawn within belongs together, and has a name."""
        self.shapes.append(f"<g aria-label={quoteattr(words)}>")
        yield
        self.shapes.append("</g>")

    def __str__(self) -> str:
        room = f"0 0 {self.width:g} {self.height:g}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{room}" font-family="sans-serif">'
        return "\n".join((head, *self.shapes, "</svg>")) + "\n"


def fitted(words: str, width: float, size: float = 11) -> str:
    """As much of them as has room."""
    room = int(width / (size * CHARACTER))
    return words if len(words) <= room else words[: max(room - 1, 0)] + "…"


def width_of(words: str, size: float = 11) -> float:
    return len(words) * size * CHARACTER

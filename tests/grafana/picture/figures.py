"""Panels of last values: one large figure, bars that lie, tables."""

from __future__ import annotations

from collections.abc import Mapping

from tests.grafana.picture.plots import Shown
from tests.grafana.picture.svg import DIM, EDGE, FAINT, INK, Box, Sheet, fitted
from tests.grafana.picture.words import colour_at, name_of, properties_of, value_in

LINE = 23


def figure(sheet: Sheet, box: Box, panel: Mapping, shown: Shown) -> None:
    """The value in its middle."""
    (answer,) = shown.answers
    defaults = panel["fieldConfig"]["defaults"]
    middle = box.x + box.width / 2, box.y + box.height / 2 + 10
    if not answer["series"]:
        sheet.text(*middle, defaults["noValue"], size=30, colour=DIM, anchor="middle")
        return
    value = answer["series"][0]["points"][-1][1]
    colour = colour_at(defaults["thresholds"]["steps"], value)
    sheet.text(*middle, value_in(defaults["unit"], value), size=30, colour=colour, anchor="middle", bold=True)


def bars(sheet: Sheet, box: Box, panel: Mapping, shown: Shown) -> None:
    """The longest is as long as there is room, or 1 is where values are shares."""
    (answer,) = shown.answers
    defaults = panel["fieldConfig"]["defaults"]
    found = [(name_of(answer["legend"], series["labels"]), series["points"][-1][1]) for series in answer["series"]]
    most = max(1.0, *(value for _, value in found))
    room = box.inside(90, 4, 70, 8)
    height = min(26, room.height / max(len(found), 1))
    for number, (name, value) in enumerate(found):
        y = room.y + number * height
        colour = colour_at(defaults["thresholds"]["steps"], value)
        sheet.text(room.x - 8, y + height / 2 + 3, fitted(name, 80), anchor="end")
        sheet.rectangle(Box(room.x, y + 3, room.width, height - 8), FAINT, rounded=2)
        sheet.rectangle(Box(room.x, y + 3, max(room.width * value / most, 2), height - 8), colour, rounded=2)
        sheet.text(room.right + 8, y + height / 2 + 3, value_in(defaults["unit"], value), colour=colour, bold=True)


def table(sheet: Sheet, box: Box, panel: Mapping, shown: Shown) -> None:
    """As the panel's transformations make it of all answers: merged, some columns, in an order, with other names."""
    merged, chosen, organized = panel["transformations"]
    assert (merged["id"], chosen["id"], organized["id"]) == ("merge", "filterFieldsByName", "organize")
    titles = organized["options"]["renameByName"]
    columns = sorted(chosen["options"]["include"]["names"], key=organized["options"]["indexByName"].__getitem__)
    rows = [{titles[name]: row.get(name, "") for name in columns} for row in _rows(shown)]
    (by,) = panel["options"]["sortBy"]
    rows = [row for row in rows if any(row.values())]
    rows.sort(key=lambda row: ((value := row[by["displayName"]]) != "", value), reverse=by["desc"])
    names = [titles[name] for name in columns]
    texts = [[_text(panel, name, row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(text[at][0]) for text in texts), 3) for at, name in enumerate(names)]
    total = sum(widths)
    room = box.inside(12, 2, 12, 6)
    fits = int(room.height / LINE) - 1
    x = room.x
    for at, name in enumerate(names):
        width = room.width * widths[at] / total
        sheet.text(x, room.y + 15, name, colour=DIM, bold=True)
        for number, text in enumerate(texts[:fits]):
            words, colour = text[at]
            sheet.text(x, room.y + LINE * (number + 1) + 15, fitted(words, width - 4), colour=colour)
        x += width
    for number in range(min(len(texts), fits) + 1):
        y = room.y + LINE * (number + 1) - 1
        sheet.line([(room.x, y), (room.right, y)], EDGE if number == 0 else FAINT)
    if len(texts) > fits:
        sheet.text(room.right, box.y - 10, f"{fits} of {len(texts)} rows", size=10, colour=DIM, anchor="end")


def _text(panel: Mapping, name: str, value: object) -> tuple[str, str]:
    if not isinstance(value, float):
        return str(value), INK
    own = properties_of(panel, name)
    colour = colour_at(own["thresholds"]["steps"], value) if "thresholds" in own else INK
    return value_in(own.get("unit", ""), value), colour


def _rows(shown: Shown) -> list[dict[str, object]]:
    """Answers merged: a row with fewer labels goes into every row that has the same ones."""
    rows: list[dict[str, object]] = []
    for number, answer in enumerate(shown.answers):
        field = "Value" if len(shown.answers) == 1 else f"Value #{chr(ord('A') + number)}"
        for series in answer["series"]:
            same = [
                row
                for row in rows
                if all(row.get(name) == value for name, value in series["labels"].items() if name in row)
            ]
            fitting = [row for row in same if set(series["labels"]) & set(row)] if number else []
            for row in fitting or [{}]:
                if not row:
                    rows.append(row)
                row |= series["labels"] | {field: float(series["points"][-1][1])}
    return rows

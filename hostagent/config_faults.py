"""What is wrong in a settings file, in words: where it is, what is allowed there, and what was found."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hostagent import config_files
from hostagent.config_files import SettingsFile
from hostagent.errors import UsageError

# What was elsewhere in earlier versions, and where it is now.
_MOVED: Mapping[tuple[str, ...], str] = {
    ("update", "budget_seconds"): "budget_seconds below [policy]",
    ("update", "priority"): "priority in a [[policy.guest]]",
    ("clock", "policy"): "clock below [policy]",
}


def explain(model: type[BaseModel], files: Sequence[SettingsFile], error: ValidationError) -> UsageError:
    """The first error of the files, in words: where it is and what is allowed there."""
    places = [(config_files.blame(files, _written(fault), _earlier(fault)), fault) for fault in error.errors()]
    (number, line), fault = min(places, key=lambda place: place[0])
    keys = _keys(fault["loc"])
    table, allowed = _walk(model, keys)
    where = f"[{'.'.join(keys[:-1])}]" if keys[:-1] else "the file's top level"
    doing = f"reading {files[number].path}, line {line}"
    if fault["type"] == "extra_forbidden":
        known = _fields(table)
        near = difflib.get_close_matches(keys[-1], known, n=1)
        return UsageError(
            doing,
            expected=f"one of {', '.join(known)} in {where}",
            found=f"unknown key '{keys[-1]}'",
            hint=_hint(keys, near),
        )
    if fault["type"] in ("transport", "agent"):
        return UsageError(doing, expected=fault["msg"], found=fault["ctx"]["uri"])
    found = "nothing" if fault["type"] == "missing" else _shown(fault["input"])
    return UsageError(doing, expected=f"{'.'.join(keys)} = {allowed}", found=found)


def _written(fault: ErrorDetails) -> list[str]:
    """The key that is at fault; the table that lacks it if it is missing."""
    keys = _keys(fault["loc"])
    return keys[:-1] if fault["type"] == "missing" else keys


def _earlier(fault: ErrorDetails) -> int:
    """How many tables come before the one that is wrong as a whole."""
    last = fault["loc"][-1]
    return last if isinstance(last, int) and fault["type"] == "value_error" else 0


def _hint(keys: list[str], near: list[str]) -> str | None:
    if moved := _MOVED.get(tuple(keys)):
        return f"it is {moved} now"
    return f"did you mean '{near[0]}'?" if near else None


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The key of a fault; numbers are places in its list."""
    return [part for part in place if isinstance(part, str)]


def _shown(value: object) -> str:
    try:
        return json.dumps(value, default=str)[:200]
    except RecursionError:  # dotted keys nest tables deeper than json goes
        return "values nested too deeply"


def _walk(model: type[BaseModel], keys: list[str]) -> tuple[type[BaseModel], str]:
    """The table that holds the last of `keys`, and what that key may be, in words."""
    for key in keys[:-1]:
        annotation: Any = _fields(model)[key].annotation
        annotation = next(iter(get_args(annotation)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    field = _fields(model).get(keys[-1])
    return model, (field.description or "") if field is not None else ""


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A table's keys, as they are written."""
    return {field.alias or name: field for name, field in model.model_fields.items()}

"""Parameters of the API become words of the command line, and never more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.cli import main
from hostagent.errors import UsageError
from hostagent.operations import OPERATIONS, NewPlan, NewUpdate, Operation, Parameters, wrong

TEXTS = st.one_of(
    st.sampled_from(["-x", "--yes", "--", "--config=/etc/shadow", "-", "@plan", "a b", "$(id)", "é", "=", "--json"]),
    st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20),
)


def command_of(operation: Operation) -> click.Command:
    command: click.Command = main
    for word in operation.words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def parsed(operation: Operation, words: tuple[str, ...]) -> dict[str, Any]:
    """What the command line makes of them, without its common options."""
    with command_of(operation).make_context(operation.name, [*words]) as context:
        return context.params


def some(operation: Operation) -> st.SearchStrategy[Parameters]:
    """Of the operation, with texts that look like something else."""
    kind = operation.parameters
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name == "plan":
            continue
        wanted = str(field.annotation)
        if "bool" in wanted:
            values[name] = st.booleans()
        elif name in ("priority", "max_unavailable"):
            values[name] = st.none() | st.integers(0, 1000)
        elif name == "clock":
            values[name] = st.none() | st.sampled_from(["step", "report"])
        elif name == "technique":
            values[name] = st.none() | st.sampled_from(["auto", "hold"])
        elif name == "methods":
            values[name] = st.lists(st.sampled_from(["in-place", "reboot"]), max_size=2)
        elif name == "unset":
            values[name] = st.lists(st.sampled_from(["all", "clock"]), max_size=2)
        elif "tuple" in wanted:
            values[name] = st.lists(TEXTS, max_size=3)
        else:
            values[name] = TEXTS if field.is_required() else st.none() | TEXTS
    return st.fixed_dictionaries(values).map(kind.model_validate)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
@settings(max_examples=40)
@given(data=st.data())
def test_what_is_asked_is_what_the_verb_hears(operation: Operation, data: st.DataObject) -> None:
    """Whatever a value looks like: it is the value of its option, and nothing else is said by it."""
    asked = data.draw(some(operation))
    heard = parsed(operation, asked.words())
    for name, value in asked.model_dump(mode="json").items():
        if name == "save":
            assert heard.pop("save") == (Path("plan") if value else None)
        elif name != "plan":
            as_heard = list(heard[name]) if isinstance(heard[name], tuple) else heard[name]
            assert as_heard == value
            del heard[name]
    assert not any(heard.values())


def test_every_operation_is_a_verb_that_knows_it() -> None:
    for operation in OPERATIONS:
        assert getattr(command_of(operation), "operation", None) == operation.name


def test_every_option_of_a_verb_can_be_asked_of_its_operation() -> None:
    """One that is missing would be dropped on the way to the agent, without a word."""
    for operation in OPERATIONS:
        options = {param.name for param in command_of(operation).params if param.expose_value}
        assert options - {"saved"} == set(operation.parameters.model_fields) - {"plan"}


def test_a_saved_plan_is_no_word() -> None:
    plan = {"to": "system", "guests": ["web1"], "facts": {"hostname": "h"}}
    asked = NewUpdate.model_validate({"plan": plan, "yes": True})
    assert asked.words() == ("--plan", "@plan", "--yes")
    assert b'"hostname": "h"' in asked.files()["@plan"]
    assert NewPlan(component="qemu").files() == {}


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, "reading the parameter 'component'"),
        ({"component": "qemu", "to": "a\0b"}, "reading the parameter 'to'"),
        ({"component": "qemu", "to": "a\nb"}, "reading the parameter 'to'"),
        ({"component": "qemu", "guests": ["x"] * 1001}, "reading the parameter 'guests'"),
        ({"component": "q" * 257}, "reading the parameter 'component'"),
        ({"component": "qemu", "max_unavailable": 10**5000}, "reading the parameter 'max_unavailable'"),
        ({"component": "qemu", "config": "/etc/shadow"}, "found unknown 'config'"),
    ],
)
def test_what_makes_no_sense_is_named(given_: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        NewPlan.model_validate(given_)
    error = wrong(caught.value)  # type: ignore[arg-type]
    assert isinstance(error, UsageError)
    assert expected in str(error)
    assert len(str(error)) < 1000

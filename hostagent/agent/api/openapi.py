"""The API's own description, OpenAPI 3.1, from the table of operations and their parameters."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from hostagent.agent.api.answers import EXIT_CODE
from hostagent.agent.api.events import EVENT_STREAM, Events
from hostagent.operations import DOCUMENT_PATH, EVENTS_PATH, LINES, OPERATIONS, Operation, Parameters, Verb
from hostagent.update.journal import Kind

_SCHEMAS = "#/components/schemas/{model}"
_ERRORS: Mapping[str, str] = {
    "400": "The parameters make no sense, or the verb says so.",
    "403": "Not for this user.",
    "408": "The body did not come in time.",
    "409": "hostagent would not begin; nothing was touched.",
    "412": "The agent runs with other settings than were named.",
    "413": "The body is too large.",
    "415": "The body is no JSON by its Content-Type.",
    "500": "It went wrong, and was rolled back; or a person has to act.",
    "503": "Too many connections.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["kind", "doing", "expected", "found", "hint"],
            "properties": {
                "kind": {"type": "string"},
                "doing": {"type": "string", "description": "What was being done."},
                **{name: {"type": ["string", "null"]} for name in ("expected", "found", "hint")},
            },
        }
    },
}
_DOCUMENT = {"type": "object"}
_EXIT_CODE = {"description": "What the verb ended with; see hostagent --help.", "schema": {"type": "integer"}}
_ROW = {
    "type": "object",
    "required": ["seq", "at", "boot_id", "update", "kind", "guest", "step", "body"],
    "properties": {
        "seq": {"type": "integer"},
        "at": {"type": "number", "description": "Unix time, seconds."},
        "boot_id": {"type": "string"},
        "update": {"type": "string"},
        "kind": {"type": "string", "enum": [str(kind) for kind in Kind]},
        "guest": {"type": ["string", "null"], "description": "Its uuid; null: the host."},
        "step": {"type": ["string", "null"]},
        "body": {"type": "object"},
    },
}
_VERSION = "1"  # of the API, as in its paths


@cache
def text() -> str:
    """As JSON, the same each time."""
    return json.dumps(document(), indent=2) + "\n"


def document() -> dict[str, Any]:
    """As OpenAPI has it."""
    paths: dict[str, dict[str, object]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.verb.lower()] = _operation(operation)
    paths[EVENTS_PATH] = {"get": _events()}
    paths[DOCUMENT_PATH] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document.",
            "responses": {"200": _json("OpenAPI 3.1.", _DOCUMENT), **_errors("403", "503")},
        }
    }
    kinds = [operation.parameters for operation in OPERATIONS if operation.verb is not Verb.GET]
    _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_SCHEMAS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hostagent",
            "summary": "Updates the host under running libvirt guests, with their memory kept.",
            "version": _VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR, "Row": _ROW, **schemas["$defs"]}},
    }


def _operation(operation: Operation) -> dict[str, object]:
    answer = {**_json(operation.answer, _DOCUMENT), "headers": {EXIT_CODE: _EXIT_CODE}}
    described: dict[str, object] = {"operationId": operation.name.replace(" ", "-"), "summary": operation.summary}
    if operation.verb is Verb.GET:
        described["parameters"] = _query(operation.parameters)
        return {**described, "responses": {"200": answer, **_errors("400", "403", "409", "412", "500", "503")}}
    described["requestBody"] = {
        "required": any(field.is_required() for field in operation.parameters.model_fields.values()),
        "content": {"application/json": {"schema": {"$ref": _SCHEMAS.format(model=operation.parameters.__name__)}}},
    }
    return {**described, "responses": {"200": answer, **_errors(*_ERRORS)}}


def _events() -> dict[str, object]:
    row = {"schema": {"$ref": "#/components/schemas/Row"}}
    return {
        "operationId": "events",
        "summary": "The journal's rows as they come: JSON lines, or server-sent events for who accepts those.",
        "parameters": [
            *_query(Events),
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "In the place of `after`, for server-sent events.",
                "schema": {"type": "integer", "minimum": 0},
            },
        ],
        "responses": {
            "200": {
                "description": "A row on each line; {} now and then when there is none.",
                "content": {LINES: row, EVENT_STREAM: row},
            },
            **_errors("400", "403", "500", "503"),
        },
    }


def _query(kind: type[Parameters]) -> list[dict[str, object]]:
    schema = kind.model_json_schema(ref_template=_SCHEMAS)
    found = []
    for name, one in schema.get("properties", {}).items():
        field = {"name": name, "in": "query", "required": name in schema.get("required", ())}
        found.append({**field, "description": one.pop("description"), "schema": _without_null(one)})
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query cannot say null: what is not said is not there."""
    plain = {key: value for key, value in schema.items() if key not in ("title", "default", "anyOf")}
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    return {**plain, **(choices[0] if choices else {})}


def _json(description: str, schema: Mapping[str, object]) -> dict[str, object]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, object]:
    return {status: _json(_ERRORS[status], {"$ref": "#/components/schemas/Error"}) for status in statuses}


if __name__ == "__main__":  # python -m hostagent.agent.api.openapi > docs/openapi.json
    sys.stdout.write(text())

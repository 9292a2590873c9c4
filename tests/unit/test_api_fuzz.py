"""The API against its own document: requests that it allows, and some that it does not; every answer is one it names.

Hypothesis over the document's schemas, which are JSON Schema as pydantic writes it: few keywords, and no tool more.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import MadeUp, Served

from hostagent.agent.api import openapi
from hostagent.agent.work import Chunk, Stream
from hostagent.operations import OPERATIONS

DOCUMENT = openapi.document()
PATHS = [
    (method.upper(), path, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
    if path != "/v1/events"  # which does not end
]
VISIBLE = st.text(st.characters(exclude_categories=("C",)), max_size=30)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema of the document allows."""
    if "$ref" in schema:
        return of_schema(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of(*map(of_schema, schema["anyOf"]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object" if "properties" in schema:
            wanted = set(schema.get("required", ()))
            parts = {name: of_schema(one) for name, one in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: part for name, part in parts.items() if name in wanted},
                optional={name: part for name, part in parts.items() if name not in wanted},
            )
        case "object":
            return st.dictionaries(VISIBLE, st.integers() | VISIBLE, max_size=3)
        case "array":
            return st.lists(of_schema(schema["items"]), max_size=3)
        case "string":
            return VISIBLE.filter(lambda text: len(text) >= schema.get("minLength", 0))
        case "integer":
            return st.integers(schema.get("minimum", -1000), schema.get("maximum", 1000))
        case "number":
            return st.floats(0, 1000)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    raise AssertionError(f"a schema that is not known here: {schema}")


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes | None, dict[str, Any]]:
    """Method, path with query, body, and what the document says of it."""
    method, path, described = draw(st.sampled_from(PATHS))
    broken = draw(st.integers(0, 3)) == 0
    query = []
    for parameter in described.get("parameters", ()):
        if parameter["required"] or draw(st.booleans()):
            value = draw(VISIBLE if broken else of_schema(parameter["schema"]))
            query += [(parameter["name"], one) for one in (value if isinstance(value, list) else [value])]
    if broken:
        query += draw(st.lists(st.tuples(VISIBLE, VISIBLE), max_size=2))
    said = "&".join(f"{quote(name, safe='')}={quote(_in_query(value), safe='')}" for name, value in query)
    body = None
    if "requestBody" in described:
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        body = draw(st.binary(max_size=40) | ANYTHING.map(_as_json) if broken else of_schema(schema).map(_as_json))
    return method, f"{path}?{said}", body, described


def _in_query(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_json(value: object) -> bytes:
    return json.dumps(value).encode()


class NoProcess:
    """Verbs that say a document at once, and remember their words."""

    def __init__(self) -> None:
        self.words: list[tuple[str, ...]] = []

    async def start(self, words: Any, *, changes: bool, environment: Any, files: Any) -> NoProcess:
        self.words.append(tuple(words))
        assert all("\0" not in word for word in words)
        assert all(isinstance(content, bytes) for content in files.values())
        return self

    async def __aenter__(self) -> NoProcess:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def __aiter__(self) -> Any:
        yield Chunk(Stream.OUT, "{}")

    async def exit_code(self) -> int:
        return 0


@pytest.fixture(scope="module")
def asks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Asks one server all of it; and what its verbs were told."""
    works = NoProcess()
    served = Served(tmp_path_factory.mktemp("fuzz"), MadeUp(), works=works)  # type: ignore[arg-type]

    with served.in_a_thread():
        yield served, works


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(request_=requests())
def test_every_answer_is_one_that_the_document_names(asks: tuple[Served, NoProcess], request_: Any) -> None:
    method, path, body, described = request_
    served, works = asks
    works.words.clear()
    answer = asyncio.run(served.ask(method, path, body))
    assert str(answer.status) in described["responses"]
    assert answer.status < 500
    if answer.status == 200:
        assert isinstance(answer.json, dict)
    else:
        assert answer.error["kind"] in ("usage", "refused")
        assert works.words == []
    for words in works.words:
        operation = next(one for one in OPERATIONS if words[: len(one.words)] == one.words)
        known = {
            f"--{operation.parameters.options.get(name, name).replace('_', '-')}"
            for name in operation.parameters.model_fields
        } | {"--json"}
        options = words[len(operation.words) : words.index("--") if "--" in words else None]
        assert {word.partition("=")[0] for word in options if word != "@plan"} <= known


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.binary(max_size=200),
    head=st.sampled_from([b"", b"GET /v1/status HTTP/1.1\r\n", b"POST /v1/updates HTTP/1.1\r\n"]),
)
def test_no_bytes_are_a_fault(asks: tuple[Served, NoProcess], said: bytes, head: bytes) -> None:
    served, _ = asks
    answer = asyncio.run(served.say(head + said + b"\r\n\r\n", ends=True))
    assert answer.status in (0, 200, 400, 404, 405, 408, 413, 415)
    assert b"Traceback" not in answer.body

"""Reading a request: its parameters, from the query or a JSON body, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar, get_origin

from aiohttp import web
from pydantic import ValidationError

from hostagent.agent.api.answers import BadRequest
from hostagent.errors import UsageError
from hostagent.operations import SETTINGS_HEADER, Parameters, Verb, wrong

P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class RequestLimits:
    """What a request may take of the agent; bytes and seconds."""

    body: int = 64 * 1024
    body_with_plan: int = 16 << 20  # as a saved plan may have in a file
    body_seconds: float = 30.0


async def read_parameters(request: web.Request, verb: Verb, kind: type[P], limits: RequestLimits) -> P:
    """What an operation is asked; a BadRequest or a UsageError when that is none of it."""
    try:
        if verb is Verb.GET:
            return kind.model_validate(_query(request, kind))
        limit = limits.body_with_plan if "plan" in kind.model_fields else limits.body
        body = await _body(request, limit, limits.body_seconds)
        return kind.model_validate_json(body or b"{}", strict=True)
    except ValidationError as error:
        raise wrong(error) from error


def require_settings(request: web.Request, ours: str) -> None:
    """Raises BadRequest when it is meant for an agent with other settings."""
    theirs = request.headers.get(SETTINGS_HEADER)
    if theirs is not None and theirs != ours:
        raise BadRequest(
            HTTPStatus.PRECONDITION_FAILED,
            "asking hostagent's agent",
            expected=f"the settings that it runs with, {ours}",
            found=theirs,
            hint="do not say --config; or, as root, say --no-agent",
        )


def _query(request: web.Request, kind: type[Parameters]) -> Mapping[str, object]:
    """Each once, unless it is a list."""
    found: dict[str, object] = {}
    for name in request.query:
        values, field = request.query.getall(name), kind.model_fields.get(name)
        many = field is not None and get_origin(field.annotation) is tuple
        if len(values) > 1 and not many:
            raise UsageError(f"reading the parameter {name!r}", expected="it once", found=f"{len(values)} times")
        found[name] = values if many else values[0]
    return found


async def _body(request: web.Request, limit: int, within_seconds: float) -> bytes:
    if not request.can_read_body:
        return b""
    reading = "reading the body"
    if request.content_type != "application/json":
        raise BadRequest(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            reading,
            expected="Content-Type: application/json",
            found=request.headers.get("Content-Type", "none"),
        )
    data = bytearray()
    try:
        async with asyncio.timeout(within_seconds):
            async for piece in request.content.iter_any():
                data += piece
                if len(data) > limit:
                    large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                    raise BadRequest(large, reading, expected=f"at most {limit} bytes", found="more")
    except TimeoutError as error:
        late, whole = HTTPStatus.REQUEST_TIMEOUT, f"all of it within {within_seconds:g} s"
        raise BadRequest(late, reading, expected=whole, found=f"{len(data)} bytes") from error
    except (ValueError, web.RequestPayloadError) as error:  # chunks that are none, a content that is cut off
        raise UsageError(reading, expected="as much as its head says", found="something else") from error
    return bytes(data)

"""Which path is answered by what; whatever goes wrong with a request is a 4xx with one sentence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from hostagent.agent.api import openapi
from hostagent.agent.api.answers import error_document, error_response, http_error
from hostagent.agent.api.events import EVENT_STREAM, Events, Pace, as_event, as_json, rows
from hostagent.agent.api.requests import RequestLimits, read_parameters
from hostagent.agent.api.running import Running
from hostagent.agent.api.sending import SendingLimits, Streaming, send
from hostagent.agent.work import Works
from hostagent.errors import HostagentError
from hostagent.operations import DOCUMENT_PATH, EVENTS_PATH, LINES, OPERATIONS, STOP_PATH, Operation, Verb

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Api:
    """What is answered from: verbs that are run, and the journal."""

    works: Works
    journal: Path
    lock: Path  # the host's
    settings: str  # the path of what the agent runs with
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - frozen
    sending: SendingLimits = SendingLimits()  # noqa: RUF009 - frozen
    pace: Pace = Pace()  # noqa: RUF009 - frozen


def add_routes(app: web.Application, api: Api) -> None:
    """All of the API."""
    running = Running(api.works, api.lock, api.settings, api.limits, api.sending)
    app.middlewares.append(_in_words(api.sending))
    for operation in OPERATIONS:
        app.router.add_route(operation.verb, operation.path, _verb(running, operation))
    app.router.add_route(Verb.POST, STOP_PATH, running.stop)
    app.router.add_route(Verb.GET, EVENTS_PATH, _events(api))
    app.router.add_route(Verb.GET, DOCUMENT_PATH, _document)


def _verb(running: Running, operation: Operation) -> Answering:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await running.run(request, operation)

    return answer


def _in_words(limits: SendingLimits) -> Middleware:
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            answered = await handler(request)
        except web.HTTPException as refused:
            answered = error_response(http_error(HTTPStatus(refused.status), f"{request.method} {request.path}"))
            if "Allow" in refused.headers:
                answered.headers["Allow"] = refused.headers["Allow"]
        except HostagentError as error:
            answered = error_response(error)
        if not answered.prepared:
            await send(request, answered, limits)
        return answered

    return answer


def _events(api: Api) -> Answering:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await read_parameters(request, Verb.GET, Events, api.limits)
        as_events = EVENT_STREAM in request.headers.get("Accept", "")
        if as_events and "Last-Event-ID" in request.headers:
            asked = asked.going_on_after(request.headers["Last-Event-ID"])
        stream = Streaming(request, EVENT_STREAM if as_events else LINES, api.sending)
        try:
            await stream.begin()
            try:
                async for row in rows(api.journal, asked, api.pace):
                    if as_events:
                        await stream.write(as_event(row))
                    else:
                        await stream.write(as_json(row) + "\n")
            except HostagentError as error:
                await stream.line(error_document(error))
            return await stream.end()
        except ConnectionError:
            return stream.cut_off()

    return answer


async def _document(_: web.Request) -> web.StreamResponse:
    return web.Response(text=openapi.text(), content_type="application/json")

"""Answers: a verb's document, or an error as one JSON sentence; never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from hostagent.errors import Failed, HostagentError, NeedsOperator, Refused, UsageError
from hostagent.operations import DOCUMENT_PATH
from hostagent.printable import one_line

EXIT_CODE = "Hostagent-Exit-Code"
"""In the head of an answer: what the verb ended with."""

_STATUSES: Mapping[type[HostagentError], HTTPStatus] = {
    UsageError: HTTPStatus.BAD_REQUEST,
    Refused: HTTPStatus.CONFLICT,
    Failed: HTTPStatus.INTERNAL_SERVER_ERROR,
    NeedsOperator: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_OF_EXIT_CODES = {int(kind.exit_code): status for kind, status in _STATUSES.items()}
_HINTS = {
    HTTPStatus.NOT_FOUND: f"GET {DOCUMENT_PATH} has all paths",
    HTTPStatus.METHOD_NOT_ALLOWED: f"GET {DOCUMENT_PATH} has all methods",
}
_FOUND_LIMIT = 200
_TEXT_LIMIT = 1000


class BadRequest(HostagentError):
    """Something is wrong with a request before it is anybody's parameters."""

    kind = "usage"

    def __init__(self, status: HTTPStatus, doing: str, **words: str | None) -> None:
        super().__init__(doing, **words)
        self.status = status


def error_document(error: HostagentError) -> dict[str, object]:
    """As the command line's --json has it."""
    told = {name: getattr(error, name) for name in ("kind", "doing", "expected", "found", "hint")}
    return {"error": {name: None if text is None else one_line(text)[:_TEXT_LIMIT] for name, text in told.items()}}


def error_text(error: HostagentError) -> str:
    """The same on one line."""
    return json.dumps(error_document(error)) + "\n"


def error_response(error: HostagentError) -> web.Response:
    """The status that fits, and the sentence."""
    status = error.status if isinstance(error, BadRequest) else status_of(error)
    return web.Response(status=status, text=error_text(error), content_type="application/json")


def status_of(error: HostagentError) -> HTTPStatus:
    """What an error of ours is in HTTP."""
    return next(
        (status for kind, status in _STATUSES.items() if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR
    )


def document_response(document: Mapping[str, object], exit_code: int) -> web.Response:
    """What a verb has said with --json. Only what is an error has a status of its own."""
    failed = _OF_EXIT_CODES.get(exit_code, HTTPStatus.INTERNAL_SERVER_ERROR)
    status = failed if "error" in document else HTTPStatus.OK
    return web.Response(
        status=status,
        text=json.dumps(document) + "\n",
        content_type="application/json",
        headers={EXIT_CODE: str(exit_code)},
    )


def http_error(status: HTTPStatus, found: str) -> BadRequest:
    """What aiohttp refuses by itself, in our words."""
    return BadRequest(
        status, "reading the request", found=f"{found[:_FOUND_LIMIT]}: {status.phrase}", hint=_HINTS.get(status)
    )

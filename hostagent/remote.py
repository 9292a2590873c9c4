"""The agent as somebody asks it who is on the same host: HTTP over its Unix socket, by the standard library alone.

Imported only once the agent's socket was found: http.client takes longer to load than the words of any verb.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from hostagent.errors import Failed, HostagentError, NeedsOperator, Refused, UsageError
from hostagent.front import Front
from hostagent.operations import FRONT_HEADER, LINES, SETTINGS_HEADER, STOP_PATH, Operation, Parameters, Verb

SILENT_SECONDS = 60.0  # a stream has a line every 15
STOP_SECONDS = 5.0
_LINE_LIMIT = 64 << 20
_KINDS: Mapping[object, type[HostagentError]] = {
    kind.kind: kind for kind in (UsageError, Refused, Failed, NeedsOperator)
}
_OTHER_AGENT = {404, 405, 412}  # it knows no such operation, or runs with other settings
_ASKING = "asking hostagent's agent"


class NotThisAgent(Exception):
    """It cannot do that, or not with these settings; what it says of that."""

    def __init__(self, error: HostagentError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Said:
    """A piece of what a verb says."""

    text: str
    to_stderr: bool


@dataclass
class Call:
    """An operation that is being carried out: iterate over what is said, then see how it ended."""

    path: Path
    _answer: http.client.HTTPResponse
    work: str = ""  # by which it can be stopped
    exit_code: int | None = None
    error: HostagentError | None = None

    def __iter__(self) -> Iterator[Said]:
        """Raises NeedsOperator when the agent is gone before it has said how it ended."""
        while self.exit_code is None:
            line = self._line()
            if "work" in line:
                self.work = str(line["work"])
            for key, to_stderr in (("out", False), ("err", True)):
                if key in line:
                    yield Said(str(line[key]), to_stderr)
            if "error" in line:
                self.error = _error(line)
            if "exit" in line:
                self.exit_code = int(str(line["exit"]))

    def stop(self) -> bool:
        """Ask it to stop, as Ctrl-C would; False when there is nobody yet to be asked."""
        body = json.dumps({"work": self.work})
        try:
            connection = _Connection(self.path, STOP_SECONDS)
            connection.request("POST", STOP_PATH, body, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                return answer.status == http.client.OK and json.loads(answer.read(_LINE_LIMIT)).get("asked") is True
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def _line(self) -> Mapping[str, object]:
        try:
            found = json.loads(self._answer.readline(_LINE_LIMIT))
            if isinstance(found, dict):
                return found
        except (OSError, http.client.HTTPException, ValueError):
            pass
        raise NeedsOperator(
            "listening to hostagent's agent",
            expected="it to say how it ended",
            found="the agent is gone, or silent; an update goes on without it",
            hint="hostagent status",
        )


@dataclass(frozen=True)
class Agent:
    """The agent that listens at a socket."""

    path: Path
    settings: str  # the path of those that it must run with

    def call(
        self, operation: Operation, asked: Parameters, front: Front, connection: socket.socket | None = None
    ) -> Call:
        """Have an operation carried out, over that connection if there is one.

        Raises what the agent says against it, NotThisAgent when it cannot do it, Failed when it does not answer.
        """
        said = asked.model_dump(mode="json", exclude_defaults=True)
        target, body = operation.path, None
        heads = {"Accept": LINES, FRONT_HEADER: front.written(), SETTINGS_HEADER: self.settings}
        if operation.verb is Verb.GET:
            target += "?" + urlencode({name: _in_query(value) for name, value in said.items()}, doseq=True)
        else:
            heads["Content-Type"], body = "application/json", json.dumps(said)
        talking = _Connection(self.path, SILENT_SECONDS, connection)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it has heard all
                talking.request(operation.verb, target, body, heads)
            answer = talking.getresponse()
            if answer.status == http.client.OK:
                return Call(self.path, answer)
            error = _error(_object(answer.read(_LINE_LIMIT)))
        except (OSError, http.client.HTTPException, ValueError) as fault:
            found = str(fault) or type(fault).__name__
            raise Failed(_ASKING, expected=f"an answer at {self.path}", found=found, hint=_LOCALLY) from fault
        raise NotThisAgent(error) if answer.status in _OTHER_AGENT else error


_LOCALLY = "systemctl status hostagent; or, as root, the same with --no-agent"


class _Connection(http.client.HTTPConnection):
    """One over a Unix socket."""

    def __init__(self, path: Path, within_seconds: float, connected: socket.socket | None = None) -> None:
        super().__init__("hostagent", timeout=within_seconds)
        self._path = path
        self._connected = connected

    def connect(self) -> None:
        made = self._connected or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        made.settimeout(self.timeout)
        if self._connected is None:
            made.connect(str(self._path))
        self.sock = made


def _in_query(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def _object(data: bytes) -> Mapping[str, object]:
    found = json.loads(data)
    return found if isinstance(found, dict) else {}


def _error(document: Mapping[str, object]) -> HostagentError:
    told = document.get("error")
    words = {str(name): str(text) for name, text in told.items() if text} if isinstance(told, dict) else {}
    kind = _KINDS.get(words.get("kind"), Failed)
    parts = {name: words.get(name) for name in ("expected", "found", "hint")}
    return kind(words.get("doing", _ASKING), **parts)

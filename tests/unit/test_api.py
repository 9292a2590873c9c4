"""The agent's API: what is answered, what is refused and how, and what nobody can take of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from journals import Writer
from served import MadeUp, Served, answer_of, connected

from hostagent.agent.api import openapi
from hostagent.agent.api.gate import ConnectionLimits
from hostagent.agent.api.requests import RequestLimits
from hostagent.agent.api.sending import SendingLimits
from hostagent.operations import LINES, OPERATIONS
from hostagent.update.host_lock import HostLock
from hostagent.update.journal import Entry, Kind, Outcome

SHOW_ENVIRONMENT = """
import json, os, sys
front = json.loads(os.environ["HOSTAGENT_FRONT"])
print(json.dumps({"words": sys.argv[1:], "agent": os.environ["HOSTAGENT_AGENT"], "front": front}))
"""
SHOW_PLAN = """
import json, os, stat, sys
path = sys.argv[sys.argv.index("--plan") + 1]
modes = [oct(stat.S_IMODE(os.stat(one).st_mode)) for one in (path, os.path.dirname(path))]
print(json.dumps({"plan": json.load(open(path)), "modes": modes}))
"""
PLAN = {"to": "system", "guests": ["web1"], "facts": {"hostname": "h"}}


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def ask(served: Served, *request: Any, **heads: str) -> Any:
    """One answer."""
    found = []

    async def run() -> None:
        found.append(await served.ask(*request, **heads))

    served.serve(run)
    return found[0]


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


# -- what is answered


def test_a_verb_s_document_is_the_answer(served: Served) -> None:
    served.launcher = MadeUp(SHOW_ENVIRONMENT)
    answer = ask(served, "GET", "/v1/facts?guests=web1&guests=--yes")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert answer.headers["Hostagent-Exit-Code"] == "0"
    assert answer.json["words"] == ["inspect", "--json", "--guest=web1", "--guest=--yes"]


def test_a_verb_never_comes_back_to_the_agent(served: Served) -> None:
    served.launcher = MadeUp(SHOW_ENVIRONMENT)
    assert ask(served, "GET", "/v1/status").json["agent"] == "off"


def test_a_saved_plan_comes_as_content_and_is_kept_from_others(served: Served) -> None:
    served.launcher = MadeUp(SHOW_PLAN)
    answer = ask(served, "POST", "/v1/updates", {"plan": PLAN, "yes": True}).json
    assert (answer["plan"]["to"], answer["plan"]["facts"]) == ("system", {"hostname": "h"})
    assert answer["modes"] == ["0o600", "0o700"]
    assert list((served.folder / "given").iterdir()) == []


def test_a_plan_is_given_with_what_a_file_would_hold(served: Served) -> None:
    served.launcher = MadeUp("""print('{"guests": []}'); print('\\0{"format": 3}')""")
    asked = {"component": "qemu", "save": True}
    assert ask(served, "POST", "/v1/plans", asked).json == {"plan": {"guests": []}, "saved": {"format": 3}}
    served.launcher = MadeUp("""print('{"guests": []}')""")
    assert ask(served, "POST", "/v1/plans", asked).json == {"plan": {"guests": []}, "saved": None}


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [
        ("print('{}'); raise SystemExit(5)", 200, "5"),  # a report of an update in which a person has to act
        ("print('{\"error\": {}}'); raise SystemExit(2)", 400, "2"),
        ("print('{\"error\": {}}'); raise SystemExit(3)", 409, "3"),
        ("print('{\"error\": {}}'); raise SystemExit(4)", 500, "4"),
        ("print('{\"error\": {}}'); raise SystemExit(70)", 500, "70"),
    ],
)
def test_only_an_error_has_a_status_of_its_own(served: Served, program: str, status: int, code: str) -> None:
    served.launcher = MadeUp(program)
    answer = ask(served, "GET", "/v1/status")
    assert (answer.status, answer.headers["Hostagent-Exit-Code"]) == (status, code)


@pytest.mark.parametrize(
    "program", ["raise SystemExit(1)", "print('no JSON')", "print('[]')", "raise ValueError('secret')"]
)
def test_a_verb_that_says_nothing_is_an_error_in_words(served: Served, program: str) -> None:
    served.launcher = MadeUp(program)
    answer = ask(served, "GET", "/v1/status")
    assert answer.status == 500
    assert "expected a document" not in answer.error["doing"]
    assert b"secret" not in answer.body


# -- streams

STAYS = """
import os, sys
waits = open({waits!r})
os.write(1, b"%d\\n" % os.getpid())
waits.read()
open({done!r}, "w").close()
"""
UPDATE = {"component": "qemu", "yes": True}


@pytest.fixture
def let_go(served: Served, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Verbs wait until this is called; then each makes a file `done`."""
    os.mkfifo(tmp_path / "waits")
    held = os.open(tmp_path / "waits", os.O_RDWR)
    served.launcher = MadeUp(STAYS.format(waits=str(tmp_path / "waits"), done=str(tmp_path / "done")))
    with ExitStack() as stack:
        stack.callback(os.close, held)
        yield stack.close


class Listening:
    """A connection on which something is said line by line."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def ask(self, method: str, path: str, body: object = None, **heads: str) -> Listening:
        content = b"" if body is None else json.dumps(body).encode()
        named = {"Host": "h", "Accept": LINES, "Content-Type": "application/json", **heads}
        words = [
            f"{method} {path} HTTP/1.1",
            f"Content-Length: {len(content)}",
            *(f"{k}: {v}" for k, v in named.items()),
        ]
        self.reader, self.writer = await asyncio.open_unix_connection(str(self._served.socket))
        self.writer.write("\r\n".join(words).encode() + b"\r\n\r\n" + content)
        self.head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        return self

    async def line(self, *, empty: bool = False) -> dict[str, Any]:
        """The next one that says something; one chunk is one line here."""
        while True:
            size = int(await self.reader.readline(), 16)
            found: dict[str, Any] = json.loads(await self.reader.readexactly(size)) if size else {"end": True}
            await self.reader.readexactly(2)
            if found or empty:
                return found

    async def pid(self) -> int:
        """What STAYS says first."""
        assert set(await self.line()) == {"work"}
        return int((await self.line())["out"].split()[0])

    def hang_up(self) -> None:
        self.writer.transport.abort()


async def ended(pid: int) -> None:
    """Wait until that process is gone."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(held, gone.set)
    await gone.wait()
    loop.remove_reader(held)
    os.close(held)


def test_what_is_said_comes_as_it_is_said(served: Served, let_go: Callable[[], None]) -> None:
    async def run() -> None:
        front = json.dumps({"width": 120, "as_json": False})
        listens = await Listening(served).ask("GET", "/v1/status", **{"Hostagent-Front": front})
        await listens.pid()
        let_go()
        assert await listens.line() == {"exit": 0}
        assert await listens.line() == {"end": True}

    served.serve(run)
    assert served.launcher.words == [["status"]]  # type: ignore[attr-defined]


def test_one_at_a_time_changes_something(served: Served, let_go: Callable[[], None]) -> None:
    async def run() -> None:
        listens = await Listening(served).ask("POST", "/v1/updates", UPDATE)
        answer = await served.ask("POST", "/v1/rollbacks", {"yes": True})
        assert (answer.status, answer.error["kind"]) == (409, "refused")
        pid = await listens.pid()
        let_go()
        await ended(pid)

    served.serve(run)


def test_an_update_goes_on_when_nobody_listens_any_more(
    served: Served, let_go: Callable[[], None], tmp_path: Path
) -> None:
    served.sending = SendingLimits(alive_seconds=0.01)

    async def run() -> None:
        listens = await Listening(served).ask("POST", "/v1/updates", UPDATE)
        pid = await listens.pid()
        listens.hang_up()
        assert (await served.ask("POST", "/v1/rollbacks", {"yes": True})).status == 409
        let_go()
        await ended(pid)

    served.serve(run)
    assert (tmp_path / "done").exists()


def test_a_look_ends_with_who_asked(served: Served, let_go: Callable[[], None], tmp_path: Path) -> None:
    served.sending = SendingLimits(alive_seconds=0.01)

    async def run() -> None:
        listens = await Listening(served).ask("GET", "/v1/facts")
        pid = await listens.pid()
        listens.hang_up()
        await ended(pid)

    served.serve(run)
    assert not (tmp_path / "done").exists()


def test_both_ends_see_that_the_other_is_there(served: Served, let_go: Callable[[], None]) -> None:
    served.sending = SendingLimits(alive_seconds=0.01)

    async def run() -> None:
        listens = await Listening(served).ask("GET", "/v1/facts")
        await listens.pid()
        assert await listens.line(empty=True) == {}
        let_go()

    served.serve(run)


def test_whoever_takes_nothing_is_left(served: Served) -> None:
    """A reader that never reads: the verb is not held up by it for ever, and the connection is closed."""
    served.launcher = MadeUp("import os\nprint(os.getpid(), flush=True)\nwhile True: print('x' * 60_000, flush=True)")
    served.sending = SendingLimits(line_seconds=0.05)

    async def run() -> None:
        listens = await Listening(served).ask("GET", "/v1/facts")
        pid = await listens.pid()
        await ended(pid)

    served.serve(run)


def test_whoever_does_not_take_an_answer_is_left(served: Served) -> None:
    served.launcher = MadeUp("print('{\"a\": \"' + 'x' * 3_000_000 + '\"}')")
    served.sending = SendingLimits(answer_seconds=0.05)
    said = []

    def reads_late() -> None:
        with connected(served.socket) as connection:
            connection.sendall(b"GET /v1/status HTTP/1.1\r\nHost: h\r\n\r\n")
            polled = select.poll()
            polled.register(connection, select.POLLHUP)  # the agent has closed it
            assert polled.poll(20_000)
            while piece := connection.recv(65536):
                said.append(piece)

    with served.in_a_thread():
        reads_late()
    assert 0 < len(b"".join(said)) < 3_000_000


# -- asking to stop


def test_an_update_that_somebody_listens_to_is_asked_to_stop(served: Served, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    served.lock = lock
    served.launcher = MadeUp(HOLDS_THE_LOCK.format(path=str(lock)), plain=False)

    async def run() -> None:
        listens = await Listening(served).ask("POST", "/v1/updates", UPDATE)
        work = (await listens.line())["work"]
        assert "held" in (await listens.line())["out"]
        assert (await served.ask("POST", "/v1/stop", {"work": work})).json == {"asked": True}
        said = [await listens.line() for _ in range(2)]
        while said[-1] != {"end": True}:
            said.append(await listens.line())
        assert said[-2] == {"exit": 130}
        assert "asked to stop" in "".join(str(one.get("out")) for one in said)
        assert (await served.ask("POST", "/v1/stop", {"work": work})).status == 409

    served.serve(run)


HOLDS_THE_LOCK = """
import signal, sys, time
from pathlib import Path
from hostagent.update.host_lock import HostLock
lock = HostLock.at(Path({path!r}))
lock.take("update qemu", time.time())
signal.signal(signal.SIGINT, lambda *_: (print("asked to stop", flush=True), sys.exit(130)))
print("held", flush=True)
signal.pause()
"""


def test_somebody_else_s_update_is_not_asked_to_stop(
    served: Served, let_go: Callable[[], None], tmp_path: Path
) -> None:
    """Ours is still beginning, or is being refused, while another one holds the host: by a terminal, say."""
    served.lock = tmp_path / "lock"
    other = HostLock.at(served.lock)
    other.take("update qemu", time.time() - 60)
    try:

        async def run() -> None:
            listens = await Listening(served).ask("POST", "/v1/updates", UPDATE)
            work = (await listens.line())["work"]
            assert (await served.ask("POST", "/v1/stop", {"work": work})).json == {"asked": False}
            await listens.line()  # it waits by now
            let_go()

        served.serve(run)
    finally:
        other.release()


@pytest.mark.parametrize("work", ["", "0" * 16, "x" * 10_000])
def test_nobody_is_asked_to_stop_by_a_guess(served: Served, work: str) -> None:
    assert ask(served, "POST", "/v1/stop", {"work": work}).error["kind"] == "refused"


# -- events


def journal_of(served: Served, *updates: str) -> Writer:
    writer = Writer()
    for update in updates:
        writer.updated(update, "web1")
    served.journal = served.folder / "journal.sqlite"
    writer.save(served.journal)
    return writer


def test_rows_come_in_their_order_and_from_where_one_was(served: Served) -> None:
    writer = journal_of(served, "u1", "u2")
    rows = lines(ask(served, "GET", "/v1/events?follow=false").body)
    assert [row["seq"] for row in rows] == [row.seq for row in writer.rows]
    assert rows[0]["body"] == {
        "component": "qemu",
        "kind": "update",
        "swaps": [],
        "undoes": "",
        "roll": "",
        **rows[0]["body"],
    }
    rest = lines(ask(served, "GET", "/v1/events?follow=false&after=5").body)
    assert rest == rows[5:]


def test_server_sent_events_go_on_after_the_last_one(served: Served) -> None:
    journal_of(served, "u1")
    heads = {"Accept": "text/event-stream", "Last-Event-ID": "3"}
    answer = ask(served, "GET", "/v1/events?follow=false", **heads)
    assert answer.headers["Content-Type"] == "text/event-stream"
    first = answer.body.decode().split("\n\n")[0].split("\n")
    assert first[0] == "id: 4"
    assert json.loads(first[2].removeprefix("data: "))["seq"] == 4
    assert (
        ask(served, "GET", "/v1/events", **{**heads, "Last-Event-ID": "-1"}).error["doing"] == "reading Last-Event-ID"
    )


def test_rows_come_as_they_are_written(served: Served) -> None:
    served.journal = served.folder / "journal.sqlite"

    async def run() -> None:
        listens = await Listening(served).ask("GET", "/v1/events")
        assert await listens.line(empty=True) == {}  # nothing yet, not even a journal
        writer = Writer()
        writer.updated("u1", "web1")
        await asyncio.to_thread(writer.save, served.journal)
        assert [(await listens.line())["seq"] for _ in writer.rows] == [row.seq for row in writer.rows]
        listens.hang_up()

    served.serve(run)


def test_what_is_for_recovery_alone_stays_on_the_host(served: Served) -> None:
    served.journal = served.folder / "journal.sqlite"
    writer = Writer()
    writer.begin("u1", "web1")
    secret = {"xml": "<graphics passwd='secret'/>", "list": ["secret"], "nested": {"a": "secret"}}
    writer.append("u1", Entry(Kind.NOTED, "uuid of web1", body={**secret, "pid": 1}))
    writer.append("u1", Entry(Kind.STEP_BEGUN, "uuid of web1", "switch", secret))
    writer.append("u1", Entry(Kind.MEASURED, "uuid of web1", body={"pause_seconds": 0.1, "list": ["secret"]}))
    writer.end_guest("u1", "web1", Outcome.UPDATED)
    writer.save(served.journal)
    answer = ask(served, "GET", "/v1/events?follow=false")
    assert b"secret" not in answer.body
    bodies = {row["kind"]: row["body"] for row in lines(answer.body)}
    assert bodies["noted"] == {}
    assert bodies["measured"] == {"pause_seconds": 0.1}


# -- what is refused, and how


@pytest.mark.parametrize(
    ("method", "path", "body", "heads", "status"),
    [
        ("GET", "/", None, {}, 404),
        ("GET", "/v1/../v1/nothing", None, {}, 404),
        ("DELETE", "/v1/status", None, {}, 405),
        ("GET", "/v1/status?x=1", None, {}, 400),
        ("GET", "/v1/status?everything=true&everything=true", None, {}, 400),
        ("GET", "/v1/status?everything=perhaps", None, {}, 400),
        ("GET", "/v1/guest", None, {}, 400),
        ("GET", "/v1/guest?name=%00", None, {}, 400),
        ("GET", "/v1/events?after=-1", None, {}, 400),
        ("POST", "/v1/updates", b"{", {}, 400),
        ("POST", "/v1/updates", b"[]", {}, 400),
        ("POST", "/v1/updates", b"\xff\xfe", {}, 400),
        ("POST", "/v1/updates", b"[" * 60_000, {}, 400),
        ("POST", "/v1/updates", b"9" * 60_000, {}, 400),
        ("POST", "/v1/updates", {"component": "qemu", "to": "\ud800"}, {}, 400),
        ("POST", "/v1/updates", {"component": "qemu", "yes": "true"}, {}, 400),
        ("POST", "/v1/updates", {"component": "qemu", "config": "/etc/shadow"}, {}, 400),
        ("POST", "/v1/updates", {"plan": "/etc/shadow"}, {}, 400),
        ("POST", "/v1/updates", {"plan": {"format": 2, "to": "x", "guests": [], "facts": {}}}, {}, 400),
        ("POST", "/v1/updates", {}, {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/updates", {}, {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/cancel", b"x" * 70_000, {}, 413),
        ("POST", "/v1/cancel", b"x" * 20, {"Content-Length": "10"}, 400),
        ("GET", "/v1/status", None, {"Hostagent-Settings": "/root/other.toml"}, 412),
        ("GET", "/v1/status", None, {"Accept": "application/x-ndjson", "Hostagent-Front": "{"}, 400),
        ("GET", "/v1/status", None, {"Accept": "application/x-ndjson", "Hostagent-Front": '{"width": 1e9}'}, 400),
        ("GET", "/v1/status", None, {"Accept": "application/x-ndjson", "Hostagent-Front": '{"PATH": "/"}'}, 400),
        ("GET", "/" + "x" * 9000, None, {}, 400),
        ("GET", "/v1/status", None, {"X": "x" * 9000}, 400),
        ("GET", "/v1/status", None, {f"X-{number}": "" for number in range(100)}, 400),
        ("GET", "/v1/status", None, {"Content-Length": "x"}, 400),
        ("GET", "/v1/status", None, {"Expect": "wonders"}, 417),
        ("GET", "http://[", None, {}, 400),
        ("CONNECT", "/v1/status", None, {}, 404),
        ("OPTIONS", "*", None, {}, 404),
        ("POST", "/v1/cancel", b"x", {"Content-Length": "1", "Content-Encoding": "gzip"}, 400),
        ("POST", "/v1/cancel", b"zz\r\n", {"Content-Length": "4", "Transfer-Encoding": "chunked"}, 400),
    ],
)
def test_every_wrong_request_is_told_in_a_sentence(
    served: Served, method: str, path: str, body: Any, heads: dict[str, str], status: int
) -> None:
    answer = ask(served, method, path, body, **heads)
    assert answer.status == status, answer.body
    assert len(str(answer.error)) < 2000
    assert served.launcher.words == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [b"\r\n\r\n", b"x\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_told_so_or_closed(served: Served, words: bytes) -> None:
    async def run() -> None:
        reader, writer = await asyncio.open_unix_connection(str(served.socket))
        writer.write(words)
        writer.write_eof()
        said = await reader.read()
        writer.close()
        if said:
            assert answer_of(said).status in (400, 404)
            assert answer_of(said).error

    served.connections = ConnectionLimits(head_seconds=0.2)
    served.serve(run)


def test_a_body_that_does_not_come_is_not_waited_for(served: Served) -> None:
    served.limits = RequestLimits(body_seconds=0.05)
    words = b"POST /v1/cancel HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"

    async def run() -> None:
        answer = await served.say(words)
        assert (answer.status, answer.headers["Connection"]) == (408, "close")
        assert answer.error["expected"] == "all of it within 0.05 s"

    served.serve(run)


@pytest.mark.parametrize("words", [b"", b"GET /v1/status HTTP/1.1\r\nHost: h\r\nX"])
def test_a_head_that_does_not_come_is_not_waited_for(served: Served, words: bytes) -> None:
    served.connections = ConnectionLimits(head_seconds=0.05)

    async def run() -> None:
        assert (await served.say(words)).body == b""

    served.serve(run)


def test_connections_are_counted(served: Served, let_go: Callable[[], None]) -> None:
    served.connections = ConnectionLimits(connections=2)

    async def run() -> None:
        both = [await Listening(served).ask("GET", "/v1/facts") for _ in range(2)]
        pids = [await one.pid() for one in both]
        answer = await served.ask("GET", "/v1/status")
        assert (answer.status, answer.error["expected"]) == (503, "at most 2 connections")
        let_go()
        await asyncio.gather(*map(ended, pids))
        for one in both:
            await one.reader.read()
        served.launcher.program = "print('{}')"  # type: ignore[attr-defined]
        assert (await served.ask("GET", "/v1/status")).status == 200

    served.serve(run)


# -- the document


def test_the_document_in_the_repository_is_current(served: Served) -> None:
    written = Path(__file__).parents[2] / "docs" / "openapi.json"
    assert written.read_text() == openapi.text(), "python -m hostagent.agent.api.openapi > docs/openapi.json"
    assert ask(served, "GET", "/v1/openapi.json").body.decode() == openapi.text()


def test_the_document_is_whole() -> None:
    document = openapi.document()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', openapi.text()))
    assert references <= set(schemas)
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.verb.lower()]
        assert {"200", "400", "403", "409", "503"} <= set(described["responses"])
        names = {one["name"] for one in described.get("parameters", ())} or set(_body_schema(document, described))
        assert names == set(operation.parameters.model_fields)


def _body_schema(document: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    if "requestBody" not in described:
        return {}
    reference = described["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    return found

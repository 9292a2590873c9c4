"""hostagent on a host of its own as the agent runs it; the same made-up host as in called.py.

To be quick it is loaded once, and copied for each verb: `with elsewhere(...) as place` gives a place, and the process
`python -ISc CALL place STATE WORDS...` is such a verb. Its update goes well; a file `changed` beside STATE makes one
guest fewer.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from called import Caller
from journals import Writer

from hostagent.cli import main

CALL = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as place:
    place.connect(sys.argv[1])
    said = json.dumps({"words": sys.argv[2:], "environment": dict(os.environ)}).encode()
    socket.send_fds(place, [len(said).to_bytes(4, "big")], [0, 1, 2])
    place.sendall(said)
    sys.exit(int(place.makefile().read() or 99))
"""


def all_well(writer: Writer, update: str) -> None:
    writer.updated(update, "web1", "db9")


@contextmanager
def elsewhere(place: Path) -> Iterator[Path]:
    """Verbs can be called there while the block lasts."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()
        server = os.fork()
        if server == 0:
            _serve(listening)
    try:
        yield place
    finally:
        os.kill(server, 9)
        os.waitpid(server, 0)


def _serve(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            os._exit(_answer(connection))
        connection.close()


def _answer(connection: socket.socket) -> int:
    """Have a copy of this process be the verb, and say what it ended with."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        asked = json.loads(file.read(int.from_bytes(size, "big")))
    verb = os.fork()
    if verb == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        _be_verb(asked["words"], asked["environment"])
    _, status = os.waitpid(verb, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    return 0


def _be_verb(words: list[str], environment: dict[str, str]) -> None:
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww"))
    code = 70
    try:
        caller = Caller(Path(words[0]), pytest.MonkeyPatch())
        os.environ.clear()
        os.environ.update(environment)
        caller.updates_by(all_well)
        if (caller.state.parent / "changed").exists():
            caller.host = replace(caller.host, guests=caller.host.guests[:1])
        main(["--config", str(caller.settings), *words[1:]])
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""Verbs through the agent: the same words come out, and the same is asked, as without it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from called import Caller
from called_elsewhere import CALL, all_well, elsewhere
from click.testing import Result
from served import MadeUp, Served
from test_api import HOLDS_THE_LOCK

from hostagent.cli.output import Output
from hostagent.processes import WITH_US

PLAN = ("plan", "qemu", "--to", "10.0")
UPDATE = ("update", "qemu", "--to", "10.0")


@dataclass
class Elsewhere:
    """Verbs run on the made-up host, in processes of their own."""

    place: Path
    state: Path

    def reading(self, words: Sequence[str]) -> Sequence[str]:
        return (*WITH_US, sys.executable, "-ISc", CALL, str(self.place), str(self.state), *words)

    def changing(self, words: Sequence[str], _environment: Mapping[str, str]) -> Sequence[str]:
        return self.reading(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with elsewhere(tmp_path_factory.mktemp("elsewhere") / "s") as place:
        yield place


@pytest.fixture
def served(hostagent: Caller, place: Path, tmp_path: Path) -> Served:
    served = Served(tmp_path, Elsewhere(place, hostagent.state), settings=str(hostagent.settings))
    with hostagent.settings.open("a") as file:
        file.write(f'[agent]\nsocket = "{served.socket}"\n')
    return served


@contextmanager
def asking_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Verbs in this process go to the agent while the block lasts."""
    with monkeypatch.context() as inside, served.in_a_thread():
        inside.delenv("HOSTAGENT_AGENT")
        yield


def masked(result: Result) -> tuple[int, str, str]:
    """What it ended with and said, but for ids and times."""
    plain = (
        re.sub(r"\d{8}-\d{6}-[0-9a-f]{8}|\d+(\.\d+)? ?m?s\b", "*", text) for text in (result.stdout, result.stderr)
    )
    out, err = plain
    return result.exit_code, out, err


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--all", "--json"),
        ("history",),
        ("history", "u1"),
        ("history", "nope"),
        ("history", "nope", "--json"),
        ("inspect", "--guest", "web1"),
        ("inspect", "--json"),
        ("inspect", "--guest=--yes"),
        (*PLAN, "--budget", "500ms"),
        (*PLAN, "--json"),
        (*PLAN, "--budget", "soon"),
        ("plan", "nothing"),
        (*UPDATE, "--yes"),
        (*UPDATE, "--yes", "--json"),
        UPDATE,
        (*UPDATE, "--guest", "nope", "--yes"),
        ("guest", "show", "web1"),
        ("guest", "set", "web1", "--budget", "1s", "--unset", "budget"),
        ("rollback", "nope", "--yes"),
        ("cancel",),
        ("cancel", "--json"),
    ],
    ids=" ".join,
)
def test_the_same_is_said(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    hostagent.write(lambda writer: writer.updated("u1", "web1"))
    hostagent.updates_by(all_well)
    alone = masked(hostagent(*words))
    with asking_it(served, monkeypatch):
        # Were it done in this process, it would fail: here is no host.
        monkeypatch.setattr("hostagent.cli.common.Call.host", None)
        monkeypatch.setattr("hostagent.cli.common.Call.updates", None)
        assert masked(hostagent(*words)) == alone


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sits there who can be asked."""
    monkeypatch.setattr(Output, "can_ask", lambda self: not self.as_json)


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
@pytest.mark.usefixtures("terminal")
def test_the_same_is_asked(hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    hostagent.updates_by(all_well)
    alone = masked(hostagent(*UPDATE, answer=answer))
    assert alone[1].count("[y/N]") == 1
    with asking_it(served, monkeypatch):
        assert masked(hostagent(*UPDATE, answer=answer)) == alone
    assert alone[0] == (0 if answer == "y\n" else 3)


@pytest.mark.usefixtures("terminal")
def test_a_yes_is_to_what_was_shown(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between the question and the yes a guest went away: what is to be done now is shown, and asked again."""
    answered = Output.answered_yes
    asked: list[bool] = []

    def answers(self: Output) -> bool:
        (tmp_path / "changed").touch()
        asked.append(answered(self))
        return asked[-1]

    monkeypatch.setattr(Output, "answered_yes", answers)
    with asking_it(served, monkeypatch):
        result = hostagent(*UPDATE, answer="y\nn\n")
    assert (asked, result.exit_code) == ([True, False], 3)
    first, second, _ = result.stdout.split("[y/N]")
    assert "Update 2 guests" in first
    assert "Update 1 guest," in second


def test_a_plan_is_saved_by_who_asks_and_read_by_him(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hostagent.updates_by(all_well)
    alone = masked(hostagent(*PLAN, "--save", str(tmp_path / "plan")))
    by_itself = (tmp_path / "plan").read_bytes()
    (tmp_path / "plan").unlink()
    with asking_it(served, monkeypatch):
        assert masked(hostagent(*PLAN, "--save", str(tmp_path / "plan"))) == alone
        assert (tmp_path / "plan").read_bytes() == by_itself
        assert hostagent(*PLAN, "--save", str(tmp_path / "no" / "plan")).exit_code == 2
        result = hostagent("update", "--plan", str(tmp_path / "plan"), "--yes")
        assert (result.exit_code, "2 guests updated" in result.stdout) == (0, True)
        (tmp_path / "changed").touch()
        result = hostagent("update", "--plan", str(tmp_path / "plan"), "--yes")
        assert (result.exit_code, "guest db9: gone" in result.stderr) == (3, True), result.output
        result = hostagent("update", "--plan", "/etc/hostname", "--yes")
        assert (result.exit_code, "reading the plan /etc/hostname" in result.stderr) == (2, True)


def on_a_terminal(place: Path, state: Path, *words: str) -> tuple[int, bytes]:
    """What hostagent ends with and writes to one; a question is answered with yes.

    What is shown while an update runs is `<live>`: how often it is painted is a matter of time.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    environment = {"TERM": "xterm-256color", "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-ISc", CALL, str(place), str(state), *words]
    said, asked = b"", False
    with subprocess.Popen(argv, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        with suppress(OSError):  # EIO: nobody has it open any more
            while piece := os.read(ours, 65536):
                said += piece
                if b"[y/N]" in said and not asked:
                    asked = bool(os.write(ours, b"y\n"))
        code = process.wait()
    os.close(ours)
    said = re.sub(
        rb"\x1b\[\?25l.*\x1b\[\?25h", b"<live>", said, flags=re.DOTALL
    )  # from hiding the cursor to showing it
    return code, re.sub(rb"\d{8}-\d{6}-[0-9a-f]{8}", b"*", said)


@pytest.mark.parametrize("words", [("inspect",), UPDATE], ids=" ".join)
def test_the_same_is_shown_on_a_terminal(
    hostagent: Caller, served: Served, place: Path, words: tuple[str, ...]
) -> None:
    """Its width, its colours, a table that lives while an update runs, a question."""
    alone = on_a_terminal(place, hostagent.state, *words, "--no-agent")
    assert (alone[0], b"\x1b[" in alone[1], alone[1].count(b"[y/N]")) == (0, True, words == UPDATE)
    with served.in_a_thread():
        assert on_a_terminal(place, hostagent.state, *words) == alone
    assert (b"<live>" in alone[1]) == (words == UPDATE)


# -- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_update_to_stop(hostagent: Caller, served: Served, number: signal.Signals) -> None:
    """What is sent to the command line reaches the update, which ends as it wants to; the exit code is the signal's."""
    hostagent.state.mkdir()
    served.lock = hostagent.state / "lock"
    served.launcher = MadeUp(HOLDS_THE_LOCK.format(path=str(served.lock)), plain=False)
    environment = {name: value for name, value in os.environ.items() if name != "HOSTAGENT_AGENT"}
    words = [sys.executable, "-m", "hostagent.cli", "--config", str(hostagent.settings), *UPDATE, "--yes"]
    with (
        served.in_a_thread(),
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(number)
        assert process.stdout.read() == "asked to stop\n"
        assert process.wait(30) == 128 + number


# -- who asks whom


def test_without_an_agent_root_does_it_himself(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOSTAGENT_AGENT")
    assert hostagent("status").exit_code == 0
    served.folder.joinpath("run").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(served.socket))  # as a crash leaves it: nobody listens
        assert hostagent("status").exit_code == 0


def test_without_an_agent_others_are_told_what_to_do(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOSTAGENT_AGENT")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = hostagent("status")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "hostagent: asking hostagent's agent: expected it to run, or to be root, found user 1000, and no agent at "
        f"{served.socket} (hint: use sudo, or: systemctl start hostagent)\n"
    )
    assert hostagent.json("status", code=2)["error"]["kind"] == "usage"


def test_who_may_not_ask_is_told_what_to_do(hostagent: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: socket.socket, _path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.delenv("HOSTAGENT_AGENT")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("hostagent.cli.through_agent.socket.socket.connect", refuses)
    result = hostagent("status")
    assert result.exit_code == 2
    assert "found user 1000 (hint: use sudo; or have yourself put into its group, hostagent" in result.stderr


@pytest.mark.parametrize("how", ["--no-agent", "HOSTAGENT_AGENT", "--connect"])
def test_nobody_need_ask_it(hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    served.launcher = made_up = MadeUp()
    with asking_it(served, monkeypatch):
        if how == "HOSTAGENT_AGENT":
            monkeypatch.setenv("HOSTAGENT_AGENT", "off")
        words = {"--no-agent": ["--no-agent"], "--connect": ["--connect", "qemu:///session"]}.get(how, [])
        assert hostagent("status", *words).exit_code == 0
    assert made_up.words == []


def test_an_agent_with_other_settings_is_not_the_right_one(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.settings = "/etc/hostagent/hostagent.toml"
    served.launcher = made_up = MadeUp()
    with asking_it(served, monkeypatch):
        assert hostagent("status").exit_code == 0
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        result = hostagent("status")
    assert (result.exit_code, made_up.words) == (2, [])
    assert "expected the settings that it runs with, /etc/hostagent/hostagent.toml" in result.stderr


def answering(path: Path, said: bytes) -> threading.Thread:
    """An agent that says only that, and closes."""
    path.parent.mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def answer() -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(said)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"out": "half\\n"}\n'


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (b"", 4, "expected an answer at"),
        (b"SSH-2.0\r\n", 4, "expected an answer at"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 1\r\n\r\nx", 4, "expected an answer at"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n[]", 4, "asking hostagent's agent"),
        (STREAM + b"12\r\n" + LINE, 5, "the agent is gone, or silent; an update goes on without it"),
        (STREAM + b"3\r\n{\r\n0\r\n\r\n", 5, "the agent is gone"),
        (STREAM + b"1\r\n\n\r\n0\r\n\r\n", 5, "the agent is gone"),
    ],
)
def test_an_agent_that_makes_no_sense_or_dies(
    hostagent: Caller, served: Served, monkeypatch: pytest.MonkeyPatch, said: bytes, code: int, words: str
) -> None:
    monkeypatch.delenv("HOSTAGENT_AGENT")
    thread = answering(served.socket, said)
    result = hostagent(*UPDATE, "--yes")
    thread.join()
    assert (result.exit_code, "Traceback" in result.output) == (code, False)
    assert words in result.stderr
    assert "half" in result.stdout or b"half" not in said


def test_a_verb_loads_no_more_than_it_did(hostagent: Caller) -> None:
    """What speaks to the agent is loaded once there is one."""
    program = (
        "import sys; from hostagent.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([m for m in ('http.client', 'aiohttp', 'asyncio', 'hostagent.remote', 'hostagent.operations')"
        " if m in sys.modules], file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HOSTAGENT_AGENT"}
    words = [sys.executable, "-c", program, "--config", str(hostagent.settings), "status", "--json"]
    with hostagent.settings.open("a") as file:
        file.write(f'[agent]\nsocket = "{hostagent.state}/no.sock"\n')
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["running"] is None
    assert not {"aiohttp", "hostagent.remote", "hostagent.operations"} & set(re.findall(r"'([\w.]+)'", done.stderr))

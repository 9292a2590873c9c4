"""Whether a guest has booted: what a hostile agent may say, and ports that answer or do not."""

from __future__ import annotations

import base64
import socket
import time
from dataclasses import dataclass, field

import pytest

from hostagent.boot import answers, boot_id_of
from hostagent.clock import AgentError, AgentFault

BOOT_ID = "8d53a1d6-3b2c-4a59-9b1e-0f6f4c2a7e11"


def encoded(text: str) -> dict[str, object]:
    return {"count": len(text), "buf-b64": base64.b64encode(text.encode()).decode(), "eof": True}


@dataclass
class Agent:
    """Gives these answers; an error is raised."""

    opened: object = 1000
    read: object = field(default_factory=lambda: encoded(f"{BOOT_ID}\n"))
    closed: object = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def ask(self, command: str, arguments: dict[str, object] | None, within_seconds: float) -> object:
        self.asked.append(command)
        answer = {"guest-file-open": self.opened, "guest-file-read": self.read, "guest-file-close": self.closed}[
            command
        ]
        if isinstance(answer, AgentError):
            raise answer
        return answer


def test_the_kernel_s_own_id_is_read_and_the_file_closed() -> None:
    agent = Agent()
    assert boot_id_of(agent, 1.0) == BOOT_ID
    assert agent.asked == ["guest-file-open", "guest-file-read", "guest-file-close"]


@pytest.mark.parametrize(
    "agent",
    [
        *(Agent(opened=bad) for bad in (None, True, "1000", {}, AgentError(AgentFault.COMMAND_DISABLED))),
        *(Agent(read=bad) for bad in (None, 7, {}, {"buf-b64": 7}, {"buf-b64": "?"}, {"buf-b64": "ä"})),
        *(Agent(read=encoded(bad)) for bad in ("", BOOT_ID * 2, BOOT_ID.upper(), f"x{BOOT_ID}", "\x1b[2J" * 9)),
        Agent(read=AgentError(AgentFault.TIMEOUT)),
    ],
)
def test_what_is_no_id_is_none(agent: Agent) -> None:
    assert boot_id_of(agent, 1.0) == ""


@pytest.mark.parametrize("read", [encoded(BOOT_ID), AgentError(AgentFault.COMMAND_FAILED)])
def test_a_file_that_does_not_close_changes_nothing(read: object) -> None:
    agent = Agent(read=read, closed=AgentError(AgentFault.TIMEOUT))
    assert boot_id_of(agent, 1.0) == (BOOT_ID if isinstance(read, dict) else "")
    assert agent.asked[-1] == "guest-file-close"


def test_a_port_that_listens_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert answers("127.0.0.1", server.getsockname()[1], 0.0)


def test_one_that_does_not_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not answers("127.0.0.1", port, 0.0)


def test_one_that_listens_later_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(time, "sleep", lambda _: server.listen())
        assert answers("127.0.0.1", server.getsockname()[1], 60.0)

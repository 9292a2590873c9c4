"""A monitor whose QEMU answers in time, or does not; and one who asks and is late himself."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostagent.errors import OutcomeUnknown
from hostagent.hypervisor import RunState
from hostagent.hypervisor.qmp import QmpMonitor

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""}, "capabilities": []}}
QUESTION = "query-status"
LIMIT = 60.0


class Qemu:
    """Answers every command at once; once it is mute, all but one."""

    def __init__(self, path: Path) -> None:
        self.is_mute = False
        self.answered = threading.Event()
        self.is_asked: Callable[[], object] = bool
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            _say(client, GREETING)
            while words := client.recv(65536).decode().strip():  # one question at a time
                asked = json.loads(words)
                if asked["execute"] == QUESTION:
                    self.is_asked()
                if not (self.is_mute and asked["execute"] == QUESTION):
                    _say(client, {"return": {"status": "running"}, **{key: asked[key] for key in asked if key == "id"}})
                if asked["execute"] == QUESTION:
                    self.answered.set()

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # also who waits for a client in vain
        self._thread.join()
        self._listener.close()


def _say(client: socket.socket, message: dict[str, object]) -> None:
    client.sendall(json.dumps(message).encode() + b"\r\n")


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    made = Qemu(tmp_path / "monitor")
    yield made
    made.end()


@pytest.fixture
def monitor(qemu: Qemu, tmp_path: Path) -> Iterator[QmpMonitor]:
    with QmpMonitor(tmp_path / "monitor", LIMIT) as made:
        yield made


def test_an_answer_that_has_arrived_is_heard_by_who_lost_the_processor_meanwhile(
    qemu: Qemu, monitor: QmpMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, loop, lost = [0.0], monitor._loop, threading.Event()
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + passed[0])

    def lose_the_processor() -> None:
        lost.set()
        assert qemu.answered.wait(LIMIT)
        passed[0] = 100.0  # past the deadline

    def is_asked() -> None:
        loop.call_soon_threadsafe(lose_the_processor)
        assert lost.wait(LIMIT)

    qemu.is_asked = is_asked
    assert monitor.run_state() is RunState.RUNNING
    assert passed == [100.0]


def test_one_that_does_not_answer_is_not_waited_for(qemu: Qemu, monitor: QmpMonitor) -> None:
    qemu.is_mute = True
    monitor.answer_within(lambda: 0.01)
    with pytest.raises(OutcomeUnknown):
        monitor.run_state()
    assert qemu.answered.wait(LIMIT)

"""How the guard hears of its updater's end."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostagent.config import Config
from hostagent.errors import Failed
from hostagent.guard import Guard, _watch
from hostagent.hypervisor.driver_lock import DriverLock

SECONDS = 10.0


class Watched:
    """A guard that watches over a process of ours, in a thread."""

    def __init__(self, run: Path) -> None:
        self.updater = subprocess.Popen(["sleep", "60"])
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(SECONDS)
        config = Config.model_validate({"paths": {"libvirt_run": run}})
        self.found: list[DriverLock | None] = []

        def watch() -> None:
            self.found.append(_watch(theirs, os.pidfd_open(self.updater.pid), config))

        self.thread = threading.Thread(target=watch, daemon=True)
        self.thread.start()

    def dies(self) -> list[DriverLock | None]:
        """The updater is gone, and its end of the channel; what the guard makes of it."""
        self.channel.close()
        self.updater.kill()
        self.updater.wait()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive(), "expected the guard to act"
        return self.found


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.updater.kill()
    made.updater.wait()


def test_it_takes_over_when_the_updater_dies(watched: Watched) -> None:
    assert watched.channel.recv(100) == b"ok"
    (lock,) = watched.dies()
    assert lock is not None


def test_it_takes_over_also_from_one_that_had_not_read_its_answers(watched: Watched) -> None:
    """The kernel says so by an error then (unix(7), ECONNRESET): an update that prepares for long has not read them."""
    watched.channel.send(json.dumps({}).encode())
    watched.channel.send(json.dumps({"pausing_until": time.monotonic() + 60}).encode())
    (lock,) = watched.dies()
    assert lock is not None


def test_it_leaves_when_the_update_has_ended(watched: Watched) -> None:
    assert watched.channel.recv(100) == b"ok"
    watched.channel.send(json.dumps({"done": True}).encode())
    assert watched.channel.recv(100) == b"ok"
    assert watched.dies() == [None]


def test_settings_reach_the_guard_as_they_are() -> None:
    """Keys that people write under another name than the code has for them, too."""
    settings = Config.model_validate(
        {"migrate": {"return": False}, "peer": [{"name": "b", "uri": "qemu+tls://b/system", "shared": ["/srv"]}]}
    )
    assert Config.model_validate_json(settings.model_dump_json(by_alias=True)) == settings


def test_whoever_finds_it_dead_is_told_where_it_says_why(tmp_path: Path) -> None:
    log = tmp_path / "guard.log"
    with (tmp_path / "lock").open("w") as host_lock:
        guard = Guard(Config(), host_lock.fileno(), log)
        guard.ready()
        guard._process.kill()
        guard._process.wait(SECONDS)
        with pytest.raises(Failed, match=str(log)):
            guard.pausing(time.monotonic() + 60)
        guard.dismiss()

"""The service's life with made-up parts, and what it serves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import called
import pytest
import sampled
from agents import KeptLog, ToldEvents
from journals import NEW, OLD, Writer

from hostagent import wiring
from hostagent.agent.notify import Notify
from hostagent.agent.service import Agent
from hostagent.config import Config
from hostagent.errors import Refused, UsageError
from hostagent.facts import Host
from hostagent.hypervisor.events import LineEvent
from hostagent.observed import Observed, observe
from hostagent.planning.guest_policy import Policies
from hostagent.update.host_lock import HostLock
from tests.bench.certificates import CA, make
from tests.bench.link import Side


@dataclass(frozen=True)
class _Says:
    """Every verb says the same, and ends."""

    script: str = "echo {}"

    def reading(self, _words: Sequence[str]) -> Sequence[str]:
        return ("/bin/sh", "-c", self.script)

    def changing(self, words: Sequence[str], _environment: Mapping[str, str]) -> Sequence[str]:
        return self.reading(words)


def look() -> tuple[Host, Observed]:
    seen = sampled.host(qemu=(OLD, NEW), guests=(called.guest("web1"),))
    return seen, observe(seen, (), Policies(), at=5.0)


@dataclass
class Made:
    """A service with made-up parts."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    script: str = "echo {}"

    def __post_init__(self) -> None:
        (self.folder / "state").mkdir()
        paths = {"state": str(self.folder / "state"), "held": str(self.folder / "held")}
        agent = {"socket": str(self.folder / "run" / "agent.sock"), "group": "", **self.settings}
        self.config = Config.model_validate({"paths": paths, "agent": agent})
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(str(self.folder / "notify"))
        self.systemd.setblocking(False)
        self.log, self.events = KeptLog(), ToldEvents()

    def run(self, course: Callable[[Agent], Awaitable[None]]) -> None:
        """The service, until the course has come to its end."""

        async def life() -> None:
            notify = Notify(str(self.folder / "notify"), 4.0)
            agent = Agent(self.config, self.log, notify, self.events, look, _Says(self.script))
            async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
                running = tasks.create_task(agent.run())
                try:
                    await course(agent)
                finally:
                    agent.stop.set()
                await running

        asyncio.run(life())

    def told(self) -> list[str]:
        """What systemd was told since the last time."""
        found = []
        while True:
            try:
                found.append(self.systemd.recv(4096).decode())
            except BlockingIOError:
                return found

    async def until_told(self, words: str) -> list[str]:
        """Read what systemd is told up to that."""
        loop, found = asyncio.get_running_loop(), [""]
        while found[-1] != words:
            found.append((await loop.sock_recv(self.systemd, 4096)).decode())
        return found[1:]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: a socket's path has 107 characters at most."""
    with TemporaryDirectory(prefix="agent") as folder:
        yield Path(folder)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


async def get(url: str, **more: Any) -> tuple[int, str, str]:
    """Status, content type, and body."""
    async with aiohttp.ClientSession() as session, session.get(url, **more) as answer:
        return answer.status, answer.headers["Content-Type"], await answer.text()


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


# -- its life ----------------------------------------------------------------------------------------------------------


def test_it_tells_systemd_how_it_does(made: Made) -> None:
    async def course(_: Agent) -> None:
        assert await made.until_told("READY=1") == ["STATUS=watching", "READY=1"]
        await made.until_told("WATCHDOG=1")
        made.events.tell(LineEvent(up=False, why="it was stopped"))
        await made.until_told("STATUS=libvirt is away")

    made.run(course)
    assert made.told()[-1] == "STOPPING=1"
    assert made.events.ended
    assert made.log.names()[-2:] == ["stopping", "ended"]


def test_what_a_crash_left_is_recovered_before_it_is_ready(tmp_path: Path) -> None:
    made = Made(tmp_path, script=f"touch {tmp_path / 'recovered'}; exit 5")
    writer = Writer()
    writer.begin("u1", "web1")
    writer.save(wiring.journal_path(made.config))

    async def course(_: Agent) -> None:
        told = await made.until_told("READY=1")
        assert (tmp_path / "recovered").exists()
        assert "STATUS=recovering" in told

    made.run(course)
    assert made.log.of("not recovered")[0]["exit_code"] == 5


def test_it_does_not_wait_for_who_is_at_work(made: Made) -> None:
    lock = HostLock.at(wiring.host_lock_path(made.config))
    lock.take("update qemu", 1.0)

    async def course(_: Agent) -> None:
        told = await made.until_told("READY=1")
        assert not any("recovering" in words for words in told)
        await made.until_told("WATCHDOG=1")

    made.run(course)


def test_the_watchdog_is_not_fed_while_something_is_stuck(made: Made) -> None:
    made.events.fault = "libvirt's event loop, for 60 s"

    async def course(agent: Agent) -> None:
        await made.until_told("READY=1")
        while not made.log.of("stuck"):
            await asyncio.sleep(0)
        well, document = agent.health()
        assert not well and document["fault"] == "libvirt's event loop, for 60 s"

    made.run(course)
    assert "WATCHDOG=1" not in made.told()


def test_it_ends_while_it_recovers_and_while_a_look_hangs(tmp_path: Path) -> None:
    made = Made(tmp_path, script="exec sleep 600")
    writer = Writer()
    writer.begin("u1", "web1")
    writer.save(wiring.journal_path(made.config))

    async def course(agent: Agent) -> None:
        await made.until_told("STATUS=recovering")
        assert agent.works.changing is not None
        pids.append(agent.works.changing.pid)

    pids: list[int] = []
    made.run(course)
    os.kill(*pids, signal.SIGKILL)  # it has gone on
    told = made.told()
    assert "READY=1" not in told and told[-1] == "STOPPING=1"
    assert made.log.of("stopping")[0]["goes_on"] == "hostagent recover"


def test_a_look_that_breaks_is_no_reason_to_end(made: Made) -> None:
    def breaks() -> tuple[Host, Observed]:
        raise KeyError("a guest that is gone")

    async def course(agent: Agent) -> None:
        agent.look = breaks
        while not made.log.of("look failed"):
            await asyncio.sleep(0)
        await made.until_told("WATCHDOG=1")

    made.run(course)


def test_two_on_one_socket_are_one_too_many(made: Made, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Made(tmp_path / "other", {"socket": str(made.config.agent.socket)})

    async def course(_: Agent) -> None:
        await made.until_told("READY=1")
        notify = Notify()
        second = Agent(other.config, other.log, notify, other.events, look, _Says())
        with pytest.raises(Refused, match="no other agent"):
            await second.run()

    made.run(course)
    assert other.log.names() == ["begun", "ended"]


# -- what it serves ----------------------------------------------------------------------------------------------------


def test_metrics_and_health(tmp_path: Path) -> None:
    port = free_port()
    made = Made(tmp_path, {"listen": f"127.0.0.1:{port}"})

    async def course(agent: Agent) -> None:
        await made.until_told("READY=1")
        while agent.watch.observed is None:
            await asyncio.sleep(0)
        status, kind, text = await get(f"http://127.0.0.1:{port}/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert 'hostagent_guests{state="running"} 1.0' in text
        assert "hostagent_guest_updates_total" in text
        status, _, health = await get(f"http://127.0.0.1:{port}/health")
        assert status == 200 and json.loads(health)["healthy"] is True
        made.events.fault = "it is stuck"
        status, _, health = await get(f"http://127.0.0.1:{port}/health")
        assert status == 503 and json.loads(health)["fault"] == "it is stuck"
        status, _, _ = await get(f"http://127.0.0.1:{port}/v1/status")
        assert status == 404  # the API is for those who are known

    made.run(course)


def test_a_journal_that_cannot_be_read_is_no_metrics(tmp_path: Path) -> None:
    port = free_port()
    made = Made(tmp_path, {"listen": f"127.0.0.1:{port}"})
    wiring.journal_path(made.config).write_bytes(b"no journal" * 1000)

    async def course(_: Agent) -> None:
        await made.until_told("READY=1")
        status, _, text = await get(f"http://127.0.0.1:{port}/metrics")
        assert status == 503 and "journal.sqlite" in text and text.count("\n") == 1

    made.run(course)


def test_others_only_by_tls(tmp_path: Path) -> None:
    port = free_port()
    make(tmp_path / "pki", [Side("agent", "127.0.0.1", "", "", "")])
    mine = tmp_path / "pki" / "agent"
    settings = {"listen": f"127.0.0.1:{port}", "tls_cert": str(mine / "cert.pem"), "tls_key": str(mine / "key.pem")}
    made = Made(tmp_path, settings)

    async def course(_: Agent) -> None:
        await made.until_told("READY=1")
        context = ssl.create_default_context(cafile=str(mine / CA))
        status, _, _ = await get(f"https://127.0.0.1:{port}/metrics", ssl=context)
        assert status == 200

    made.run(course)


@pytest.mark.parametrize("broken", ["none", "no pem"])
def test_a_certificate_that_is_none(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "file"
    if broken == "no pem":
        path.write_text("no pem")
    made = Made(tmp_path, {"listen": "127.0.0.1:9177", "tls_cert": str(path), "tls_key": str(path)})

    async def life() -> None:
        agent = Agent(made.config, made.log, Notify(), made.events, look, _Says())
        with pytest.raises(UsageError, match="reading the agent's certificate"):
            await agent.run()

    asyncio.run(life())


def test_an_address_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = Made(tmp_path, {"listen": f"127.0.0.1:{port}"})

        async def life() -> None:
            agent = Agent(made.config, made.log, Notify(), made.events, look, _Says())
            with pytest.raises(Refused) as caught:
                await agent.run()
            told = str(caught.value)
            assert told.startswith(f"listening at 127.0.0.1 port {port}: ") and "in use" in told and "\n" not in told

        asyncio.run(life())

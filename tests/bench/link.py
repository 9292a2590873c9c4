"""The network between the bench's two hosts: one link for libvirt and migrations, one that joins the guests' bridges.

What is cut is dropped where it arrives, on both sides, as by a broken switch: nobody is told, and no connection ends by
itself. On the first host the link ends in a bridge, so that its own address stays when the second host is gone.
"""

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from tests.bench.guest_spec import BRIDGE, BRIDGE_MAC, HOST_ADDRESS

HOSTS = "hosts0"
"""The device with the host's own address, on either side."""
PORT = "hosts0p"
"""The first host's end of the link, in its bridge."""
GUESTS = "guests0"
"""Joins the guests' bridge of one side with that of the other."""
TCP_PORT, TLS_PORT = 16509, 16514
"""libvirt's own ("remote"); QEMU's migrations have others, from 49152 up (qemu.conf)."""
BURST = "64kb"
LATENCY = "50ms"


@dataclass(frozen=True)
class Side:
    """One of the two hosts: its name, its address between the hosts, and its place on the guests' bridge."""

    name: str
    address: str
    bridge_address: str
    bridge_mac: str
    uuid: str


A = Side("host-a", "10.78.0.1", HOST_ADDRESS, BRIDGE_MAC, "0a0a0a0a-77aa-4a77-8a77-000000000001")
B = Side("host-b", "10.78.0.2", "10.77.0.2", "52:54:00:77:00:02", "0b0b0b0b-77bb-4b77-8b77-000000000002")
SIDES = (A, B)


class Traffic(Enum):
    """What is dropped, as iptables(8) tells it: each value is one rule."""

    ALL = ((),)
    LIBVIRT = tuple(("-p", "tcp", f"--{end}port", str(port)) for end in ("s", "d") for port in (TCP_PORT, TLS_PORT))
    """All between the libvirt daemons; a guest's RAM and state go on."""
    ANSWERS = tuple(("-p", "tcp", "--sport", str(port)) for port in (TCP_PORT, TLS_PORT))
    """What a daemon that was called says: it gets every call, carries it out, and is not heard."""
    MIGRATION = tuple(("-p", "tcp", f"--{end}port", "49152:49215") for end in ("s", "d"))
    """A guest's RAM and state; the daemons go on talking."""


class Link:
    """Between this network namespace and another process's; nothing of it is left once that has ended and `remove`."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._rules: list[tuple[str, ...]] = []
        _run("ip", "link", "add", HOSTS, "type", "bridge")
        _run("ip", "addr", "add", f"{A.address}/24", "dev", HOSTS)
        _run("ip", "link", "set", HOSTS, "up")

    def connect(self, pid: int) -> None:
        """Plug in the host that the process is in; it brings up its own ends (`bring_up`)."""
        self._pid = pid
        for ours, theirs, bridge in ((PORT, HOSTS, HOSTS), (GUESTS, GUESTS, BRIDGE)):
            _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", str(pid))
            _run("ip", "link", "set", ours, "master", bridge, "up")

    def disconnect(self) -> None:
        """Once that host has ended; the kernel may not have taken its ends away yet."""
        self._pid = None
        for name in (PORT, GUESTS):
            with suppress(subprocess.CalledProcessError):
                _run("ip", "link", "delete", name, quiet=True)

    def remove(self) -> None:
        self.mend()
        self.disconnect()
        _run("ip", "link", "delete", HOSTS)

    def cut(self, what: Traffic = Traffic.ALL) -> None:
        """Drop it from now on, in both directions. What is cut already stays so."""
        for rule in what.value:
            self._rules.append(rule)
            for side in self._sides():
                _run(*side, "iptables", "--wait", "-A", "INPUT", "-i", HOSTS, *rule, "-j", "DROP")

    def mend(self) -> None:
        """Everything passes again; what was sent meanwhile is sent again by whoever still waits for an answer."""
        for rule in self._rules:
            for side in self._sides():
                with suppress(subprocess.CalledProcessError):  # a host that was started again has no such rule
                    _run(*side, "iptables", "--wait", "-D", "INPUT", "-i", HOSTS, *rule, "-j", "DROP", quiet=True)
        self._rules.clear()

    def slow(self, bits_per_second: int) -> None:
        """Let through so much in each direction, until `full_speed`."""
        rate = ("rate", f"{bits_per_second}bit", "burst", BURST, "latency", LATENCY)
        for side, device in zip(self._sides(), (PORT, HOSTS), strict=False):
            _run(*side, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *rate)

    def full_speed(self) -> None:
        for side, device in zip(self._sides(), (PORT, HOSTS), strict=False):
            with suppress(subprocess.CalledProcessError):  # it was not slow
                _run(*side, "tc", "qdisc", "delete", "dev", device, "root", quiet=True)

    def _sides(self) -> list[tuple[str, ...]]:
        """How to run a command on each."""
        if self._pid is None:
            return [()]
        return [(), ("nsenter", f"--net=/proc/{self._pid}/ns/net", "--")]


def bring_up(side: Side) -> None:
    """The second host's ends of a link that was plugged into it, once its bridge is there."""
    _run("ip", "addr", "add", f"{side.address}/24", "dev", HOSTS)
    _run("ip", "link", "set", HOSTS, "up")
    _run("ip", "link", "set", GUESTS, "master", BRIDGE, "up")


def _run(*command: str, quiet: bool = False) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL if quiet else None)

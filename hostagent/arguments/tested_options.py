"""What of QEMU's argument list the handover has been tested with, as a table to read and extend.

An allow-list: whatever is not here stops a handover. Names and values are those that libvirt 9.0 and 11.3
write (libvirt, src/qemu/qemu_command.c); JSON and key=value forms are read into the same names, so that
``"cache":{"direct":true}`` is ``cache.direct=on``. A line is added together with a test of a real guest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Values:
    """The values that a property may have: for people, and as a pattern for the whole value."""

    words: str
    pattern: str

    def allows(self, value: str) -> bool:
        """Whether the value is one of them."""
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None


def exactly(*values: str) -> Values:
    """One of a few words."""
    return Values(" or ".join(values), "|".join(re.escape(value) for value in values))


@dataclass(frozen=True)
class Tested:
    """The properties of one option, or of one driver of it."""

    properties: Mapping[str, Values] = field(default_factory=dict)
    others: tuple[str, Values] | None = None  # pattern for further names (CPU features), and their values


ANY = Values("anything", ".*")
NUMBER = Values("a number", r"\d+")
NUMBERS = Values("numbers", r"\d+(:\d+)*")  # one descriptor a queue, "29:30"
PORT = Values("a port", r"\d+(\.\d+)*")
SIZE = Values("a size", r"\d+[kKmMgG]?")
NAME = Values("a name", r"[^,=]+")
PATH = Values("a path", r"/(?!dev/fdset/).*")  # a disk in an fd set would have to be opened again by us
ON, OFF, SWITCH = exactly("on"), exactly("off"), exactly("on", "off")

_PCI = {"id": NAME, "bus": NAME, "addr": NAME, "multifunction": SWITCH}
_USB = {**_PCI, "masterbus": NAME, "firstport": NUMBER}
_NODE = {
    "node-name": NAME,
    "read-only": SWITCH,
    "auto-read-only": SWITCH,
    "discard": exactly("unmap", "ignore"),
    "detect-zeroes": exactly("on", "off", "unmap"),
    "cache.direct": SWITCH,
    "cache.no-flush": SWITCH,
}
_FILE = {**_NODE, "filename": PATH, "aio": exactly("native", "threads", "io_uring")}
_FORMAT = {**_NODE, "file": NAME}
# Features of the CPU, but for those with state of their own that nobody has tried to carry.
_CPU_FEATURES = (r"(?!hv[-_]|xen|pmu$|kvm$|migratable$)[a-z0-9][a-z0-9._-]*", SWITCH)
_MACHINE = Tested(
    {
        "usb": OFF,
        "vmport": SWITCH,
        "smm": OFF,
        "dump-guest-core": SWITCH,
        "memory-backend": NAME,
        "hpet": SWITCH,
        "acpi": SWITCH,
        "mem-merge": SWITCH,
    }
)

# The values of options that are one word. A -global sets a device's property, so only known ones pass.
TESTED_WORDS: Mapping[str, Values] = {
    "uuid": ANY,
    "kernel": PATH,
    "initrd": PATH,
    "append": ANY,
    "incoming": ANY,  # replaced in the new argument list
    "watchdog-action": exactly("reset"),
    "global": Values(
        "known to be carried",
        r"kvm-pit\.lost_tick_policy=(delay|discard)"
        r"|(PIIX4_PM|ICH9-LPC)\.disable_s[34]=[01]"
        r"|ICH9-LPC\.noreboot=(on|off)",
    ),
}
TESTED_SWITCHES = frozenset({"S", "no-user-config", "nodefaults", "no-shutdown", "no-reboot", "no-acpi", "no-hpet"})

# Option -> kind (a pattern; "" when the option has none) -> what of it has been tested.
TESTED: Mapping[str, Mapping[str, Tested]] = {
    "name": {"": Tested({"guest": ANY, "debug-threads": ON})},
    "machine": {
        r"pc-i440fx-\d+\.\d+": _MACHINE,  # never an alias: "q35" is another machine in another QEMU
        r"pc-q35-\d+\.\d+": _MACHINE,
        "": Tested({"hpet": OFF, "acpi": OFF}),  # as a handover writes -no-hpet and -no-acpi
    },
    "accel": {"tcg": Tested(), "kvm": Tested()},
    "cpu": {
        "host": Tested({"migratable": ON}, others=_CPU_FEATURES),
        # `max` and `base` mean what the binary at hand can do: a guest could lose instructions it uses.
        "(?!max$|base$)[A-Za-z0-9][A-Za-z0-9._-]*": Tested(others=_CPU_FEATURES),
    },
    "m": {"": Tested({"size": SIZE, "slots": NUMBER, "maxmem": SIZE})},
    "numa": {
        "": Tested(
            {
                "type": exactly("node", "dist"),
                "nodeid": NUMBER,
                "cpus": Values("a vCPU, or from one to another", r"\d+(-\d+)?"),
                "memdev": NAME,
                **dict.fromkeys(("src", "dst", "val"), NUMBER),
            }
        )
    },
    "overcommit": {"": Tested({"mem-lock": OFF})},
    "smp": {
        "": Tested(
            dict.fromkeys(("cpus", "maxcpus", "sockets", "dies", "clusters", "modules", "cores", "threads"), NUMBER)
        )
    },
    "display": {"none": Tested()},
    "vnc": {
        "": Tested(
            {
                "vnc": Values(
                    "an address and a display, or a socket", r"(\d+(\.\d+){3}|\[[0-9a-fA-F:]+\]):\d+|unix:/.*"
                ),
                "password": ON,
                "audiodev": NAME,
            }
        )
    },
    "audiodev": {"none": Tested({"id": NAME})},
    "mon": {"": Tested({"chardev": NAME, "id": NAME, "mode": exactly("control")})},
    "rtc": {"": Tested({"base": exactly("utc", "localtime"), "driftfix": exactly("slew", "none")})},
    "boot": {"": Tested({"strict": ON, "menu": SWITCH})},
    "sandbox": {
        "": Tested(
            {
                "enable": ON,
                **dict.fromkeys(
                    ("obsolete", "elevateprivileges", "spawn", "resourcecontrol"), exactly("deny", "allow")
                ),
            }
        )
    },
    "msg": {"": Tested({"timestamp": ON})},
    "add-fd": {"": Tested({"set": NUMBER, "fd": NUMBER, "opaque": ANY})},
    "object": {
        "secret": Tested({"id": exactly("masterKey0"), "format": exactly("raw"), "file": PATH}),
        "memory-backend-file": Tested(
            {
                "id": NAME,
                "mem-path": PATH,
                "size": NUMBER,
                "share": ON,
                "discard-data": OFF,
                "prealloc": OFF,
                "pmem": OFF,
                "x-use-canonical-path-for-ramblock-id": SWITCH,
            }
        ),
        # RAM that has no name is copied into a file that has one.
        "memory-backend-ram": Tested({"id": NAME, "size": NUMBER, "share": OFF}),
        "memory-backend-memfd": Tested(
            {"id": NAME, "size": NUMBER, "share": SWITCH, "x-use-canonical-path-for-ramblock-id": OFF}
        ),
        "iothread": Tested({"id": NAME}),
        "rng-random": Tested({"id": NAME, "filename": exactly("/dev/urandom", "/dev/random")}),
    },
    "chardev": {
        "socket": Tested({"id": NAME, "fd": NUMBER, "server": ON, "wait": OFF}),
        "file": Tested({"id": NAME, "path": Values("a path", "/.*"), "append": SWITCH}),
        "pty": Tested({"id": NAME, "logfile": Values("an fd set", r"/dev/fdset/\d+"), "logappend": SWITCH}),
    },
    "blockdev": {
        "file": Tested(_FILE),
        "host_device": Tested(_FILE),
        "raw": Tested(_FORMAT),
        "qcow2": Tested({**_FORMAT, "backing": NAME, "discard-no-unref": SWITCH}),
    },
    "netdev": {
        "tap": Tested(
            {
                "id": NAME,
                "vhost": SWITCH,
                "fd": NUMBER,
                "fds": NUMBERS,
                "vhostfd": NUMBER,
                "vhostfds": NUMBERS,
            }
        )
    },
    "device": {
        "pcie-root-port": Tested({**_PCI, "port": NUMBER, "chassis": NUMBER, "hotplug": SWITCH}),
        "pcie-pci-bridge": Tested(_PCI),
        "pci-bridge": Tested({**_PCI, "chassis_nr": NUMBER}),
        "piix3-usb-uhci": Tested(_PCI),
        "ich9-usb-ehci1": Tested(_USB),
        "ich9-usb-uhci[123]": Tested(_USB),
        "qemu-xhci": Tested({**_PCI, "p2": NUMBER, "p3": NUMBER}),
        "virtio-serial-pci": Tested({**_PCI, "max_ports": NUMBER, "vectors": NUMBER}),
        "virtserialport": Tested({"id": NAME, "bus": NAME, "nr": NUMBER, "chardev": NAME, "name": ANY}),
        "isa-serial": Tested({"id": NAME, "chardev": NAME, "index": NUMBER}),
        "virtio-blk-pci": Tested(
            {
                **_PCI,
                "drive": NAME,
                "bootindex": NUMBER,
                "write-cache": SWITCH,
                "iothread": NAME,
                "num-queues": NUMBER,
                "queue-size": NUMBER,
                "serial": ANY,
            }
        ),
        "virtio-net-pci": Tested(
            {
                **_PCI,
                "netdev": NAME,
                "mac": Values("a MAC address", "[0-9a-fA-F:]{17}"),
                "bootindex": NUMBER,
                "mq": SWITCH,
                "mrg_rxbuf": SWITCH,
                "vectors": NUMBER,
                "rx_queue_size": NUMBER,
                "tx_queue_size": NUMBER,
                "host_mtu": NUMBER,
            }
        ),
        "VGA": Tested({**_PCI, "vgamem_mb": NUMBER}),
        "cirrus-vga": Tested(_PCI),
        "virtio-vga": Tested({**_PCI, "max_outputs": exactly("1")}),
        ".*-x86_64-cpu": Tested(
            {"id": NAME, "socket-id": NUMBER, "core-id": NUMBER, "thread-id": NUMBER, "node-id": NUMBER}
        ),
        "pc-dimm": Tested({"id": NAME, "memdev": NAME, "slot": NUMBER, "addr": NUMBER, "node": NUMBER}),
        "usb-tablet": Tested({"id": NAME, "bus": NAME, "port": PORT}),
        "ide-cd": Tested({"id": NAME, "bus": NAME, "drive": NAME, "bootindex": NUMBER, "unit": NUMBER}),
        "virtio-rng-pci": Tested({**_PCI, "rng": NAME, "max-bytes": NUMBER, "period": NUMBER}),
        "virtio-balloon-pci": Tested(_PCI),
    },
}

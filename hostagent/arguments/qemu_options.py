"""One option of QEMU's argument list, read: JSON, key=value list or plain word, all to named properties.

Grammar: QEMU, util/qemu-option.c and util/keyval.c; a comma inside a value is doubled.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

# The property that says which driver or backend an option is about.
KIND: Mapping[str, str] = {
    "object": "qom-type",
    "machine": "type",
    "accel": "accel",
    "cpu": "model",
    "chardev": "backend",
    "device": "driver",
    "blockdev": "driver",
    "netdev": "type",
    "audiodev": "driver",
    "display": "type",
    "tpmdev": "type",
}
# The name that the first word of a key=value list may leave out (QEMU, system/vl.c: implied_opt_name).
IMPLIED: Mapping[str, str] = {
    **KIND,
    "name": "guest",
    "m": "size",
    "smp": "cpus",
    "mon": "chardev",
    "boot": "order",
    "sandbox": "enable",
    "vnc": "vnc",
    "numa": "type",
    "fsdev": "fsdriver",
}
# Options whose argument is one word and no list.
WORDS = frozenset(
    ("uuid", "kernel", "initrd", "append", "incoming", "global", "watchdog-action", "bios", "dtb", "pidfile")
)
# Options without an argument (QEMU, qemu-options.hx of 7.2 and 10.0).
SWITCHES = frozenset(
    (
        *("S", "s", "no-user-config", "nodefaults", "no-shutdown", "no-reboot", "no-acpi", "no-hpet"),
        *("nographic", "enable-kvm", "daemonize", "usb", "snapshot", "no-fd-bootchk", "full-screen"),
        *("enable-fips", "only-migratable", "preconfig", "singlestep", "win2k-hack", "h", "help"),
    )
)


_UNITS = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


@dataclass(frozen=True)
class Property:
    """A name and its value as text; nested JSON names are joined by dots, true and false are on and off."""

    name: str
    value: str


@dataclass(frozen=True)
class Option:
    """An option as it came, and as it reads."""

    name: str  # without the dash; "" for a word that belongs to no option
    words: tuple[str, ...]  # exactly as it came: the option, and its argument when it has one
    properties: tuple[Property, ...] = ()
    unreadable: str = ""  # why the argument could not be read, for people

    @property
    def argument(self) -> str:
        """The argument as it came, "" for a switch."""
        return self.words[-1] if len(self.words) > 1 or not self.name else ""

    @property
    def kind(self) -> str:
        """The driver, backend or type that the option is about; "" when it has none."""
        return self.get(KIND[self.name]) if self.name in KIND else ""

    def get(self, name: str, default: str = "") -> str:
        """The value of a property; of one that is given twice the last, as QEMU takes it."""
        return next((item.value for item in reversed(self.properties) if item.name == name), default)

    def size(self, name: str = "size", *, bare: str = "b") -> int:
        """A size in bytes; 0 for one that is not there or cannot be read. bare: the unit of a number alone."""
        found = re.fullmatch(r"(\d+)([bkmgt]?)", self.get(name).lower())
        return int(found[1]) * _UNITS[found[2] or bare] if found else 0

    def has(self, name: str) -> bool:
        """Whether a property is given at all."""
        return any(item.name == name for item in self.properties)

    def __str__(self) -> str:
        words = [f"-{self.name}", self.kind] if self.name else [self.argument]
        named = f" (id {self.get('id') or self.get('node-name')})"
        return " ".join(filter(None, words)) + (named if self.get("id") or self.get("node-name") else "")


def read_options(words: Iterable[str]) -> Iterator[Option]:
    """Read what follows the binary; whatever is not understood stays as it came and is marked."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            yield Option("", (word,), unreadable="a word without an option")
            continue
        name = word[1:]
        known = name in IMPLIED or name in WORDS or name in SWITCHES
        # An option that nobody knows: whether the next word is its argument can only be guessed.
        takes_argument = name not in SWITCHES and bool(rest) and (known or not rest[0].startswith("-"))
        yield _read(name, word, rest.pop(0)) if takes_argument else Option(name, (word,))


def json_option(name: str, properties: Mapping[str, object]) -> Option:
    """An option with a JSON argument, as libvirt writes it."""
    (option,) = read_options((f"-{name}", json.dumps(properties, separators=(",", ":"), ensure_ascii=False)))
    return option


def _read(name: str, word: str, argument: str) -> Option:
    words = (word, argument)
    if name in WORDS:
        return Option(name, words)
    if not argument.startswith("{"):
        return Option(name, words, tuple(split_list(argument, implied=IMPLIED.get(name, ""))))
    try:
        document = json.loads(argument)
    except (ValueError, RecursionError) as problem:
        return Option(name, words, unreadable=f"not JSON: {problem}")
    return Option(name, words, tuple(_flat("", document)))


def _flat(name: str, value: object) -> Iterator[Property]:
    """Properties out of JSON: ``{"cache": {"direct": true}}`` is ``cache.direct=on``."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, bool):
        yield Property(name, "on" if value else "off")
    else:
        yield Property(name, "null" if value is None else str(value))


def split_list(text: str, *, implied: str = "") -> Iterator[Property]:
    """Read ``key=value,key=value``; the first word may be a bare value for the implied key."""
    for position, found in enumerate(re.finditer(r"((?:[^,]|,,)+)(?:,|$)", text, re.DOTALL)):
        name, equals, value = found[1].partition("=")
        if not equals and position == 0 and implied:
            name, value = implied, name
        elif not equals:
            value = "on"  # a bare word is a switch: QEMU, qemu-option.c, get_opt_name_value
        yield Property(name, value.replace(",,", ","))


def join_list(properties: Iterable[Property]) -> str:
    """Write a list that `split_list` reads back as the same properties."""
    return ",".join(f"{item.name}={item.value.replace(',', ',,')}" for item in properties)

"""What may stand in libvirt's runtime record outside the live XML; all else is refused.

After ``virDomainObjFormat`` and ``qemuDomainObjPrivateXMLFormat`` of libvirt 9.0 and 11.3, which write it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from hostagent.errors import Refused
from hostagent.libvirt_files.xml_spans import Element, Remark, escaped

STATES = frozenset({"nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended"})
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_FLAG = re.compile(r"[A-Za-z0-9_.+-]+", re.ASCII)  # the form of every name in libvirt's virQEMUCaps


class RecordNotUnderstood(Refused):
    """The record holds something unknown here, so nothing can be said of a handover."""

    kind = "record-not-understood"


class _Part(NamedTuple):
    """What may stand in one child of <domstatus>."""

    attributes: str = ""  # exactly these
    child: str = ""  # the only element allowed inside, with exactly the attributes below
    child_attributes: str = ""
    text: bool = False
    closed: bool = True  # False: what is inside is not looked at here
    required: bool = False
    many: bool = False


_MARK = _Part()  # being there is all it says
_PARTS = {
    "taint": _Part("flag", many=True),
    "deprecation": _Part(text=True, many=True),
    "monitor": _Part("path type", required=True),
    "dbusDaemon": _MARK,
    "dbusVMState": _MARK,
    "namespaces": _Part(child="mount"),
    "vcpus": _Part(child="vcpu", child_attributes="id pid", required=True),
    "qemuCaps": _Part(child="flag", child_attributes="name", required=True),
    "lockstate": _Part(text=True),
    "job": _Part(closed=False),
    "fakereboot": _MARK,
    "devices": _Part(child="device", child_attributes="alias"),
    "numad": _Part(closed=False),
    "libDir": _Part("path", required=True),
    "channelTargetDir": _Part("path", required=True),
    "memoryBackingDir": _Part("path"),  # 11.3, not 9.0
    "cpu": _Part(closed=False),
    "chardevStdioLogd": _MARK,
    "rememberOwner": _MARK,
    "allowReboot": _Part("value"),
    "prDaemon": _MARK,
    "nodename": _Part("index", required=True),
    "fdset": _Part("index", required=True),
    "memPrealloc": _MARK,
    "blockjobs": _Part(closed=False, required=True),
    "slirp": _Part(closed=False),
    "agentTimeout": _Part(text=True, required=True),
    "backups": _Part(closed=False),
    "originalMemlock": _Part(text=True),
    "preMigrationMemlock": _Part(text=True),
    "domain": _Part(closed=False, required=True),
}


def not_understood(expected: str, found: str) -> RecordNotUnderstood:
    """The refusal, to be raised."""
    hint = "hostagent knows the records of libvirt 9.0 to 11.3; update this guest by another method"
    return RecordNotUnderstood("reading libvirt's runtime record", expected=expected, found=found, hint=hint)


def check_status(root: Element) -> None:
    """Everything outside <domain> against the list; RecordNotUnderstood for anything else."""
    if root.name != "domstatus" or root.get("state") not in STATES:
        raise not_understood("<domstatus> in a known state", f"<{root.name}> in state {root.get('state')!r}")
    _check_own(root, "state reason pid")
    for element in root.elements:
        part = _PARTS.get(element.name)
        if part is None:
            raise not_understood("only known parts", f"<{element.name}>")
        if not part.closed:
            continue
        _check_own(element, part.attributes, text=part.text)
        for child in element.elements:
            if child.name != part.child or child.elements:
                raise not_understood(f"only known parts in <{element.name}>", f"<{child.name}>")
            _check_own(child, part.child_attributes)
    for name, part in _PARTS.items():
        count = len(root.named(name))
        if (count > 1 and not part.many) or (count == 0 and part.required):
            raise not_understood(f"one <{name}>", str(count))


def _check_own(element: Element, attributes: str, *, text: bool = False) -> None:
    """An element's own attributes and text, not its children."""
    names = sorted(item.name for item in element.attributes)
    if names != sorted(attributes.split()):
        raise not_understood(f"<{element.name}> with [{attributes}]", f"[{' '.join(names)}]")
    if any(isinstance(item, Remark) for item in element.content):
        raise not_understood(f"no comment in <{element.name}>", "one")
    if not text and element.text.strip(" \t\r\n"):
        raise not_understood(f"no text in <{element.name}>", repr(element.text.strip()[:80]))


def flags_problem(flags: Sequence[str]) -> tuple[str, str] | None:
    """What is expected of capability flags and what was found instead, if anything."""
    if not flags:  # libvirt kills a guest that "has no capabilities recorded"
        return "capability flags", "none"
    if odd := [flag for flag in flags if not _FLAG.fullmatch(flag)]:
        return "flag names of letters, digits and _.+-", repr(odd[0])
    return once_problem(flags, "flag")


def once_problem(values: Sequence[object], what: str) -> tuple[str, str] | None:
    """The same of values that must differ from each other."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            return f"every {what} once", f"{value!r} twice"
        seen.add(value)
    return None


def one(parent: Element, name: str) -> Element:
    """The only element of that name directly inside."""
    found = parent.named(name)
    if len(found) != 1:
        raise not_understood(f"one <{name}> in <{parent.name}>", str(len(found)))
    return found[0]


def text_of(parent: Element, name: str) -> str:
    """The text of the only element of that name, which holds nothing else."""
    element = one(parent, name)
    if not element.text.strip() or any(not isinstance(item, str) for item in element.content):
        raise not_understood(f"a text in <{name}>", "none" if not element.elements else "more than a text")
    return element.text


def number_of(element: Element, name: str, *, least: int = 0) -> int:
    """The number that an attribute holds."""
    written = element.get(name)
    if not _NUMBER.fullmatch(written) or not least <= int(written) < 2**31:
        raise not_understood(f"a number from {least} as {name} of <{element.name}>", repr(written))
    return int(written)


def pid_file_name(guest: str) -> str:
    """The name of libvirt's pid file of a guest: escaped as for XML, unlike the record's (virPidFileBuildPath)."""
    return escaped(guest).decode() + ".pid"

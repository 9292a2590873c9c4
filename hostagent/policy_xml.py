"""A guest's own policy, as its libvirt metadata holds it; pure.

libvirt leaves <metadata> to others, one element of each namespace (docs/formatdomain). Whoever may change a guest's
definition can write anything there: what is not understood is an error, and never passed over.

::

    <hostagent:policy xmlns:hostagent="urn:hostagent:policy:1">
      <hostagent:allow><hostagent:method>in-place</hostagent:method></hostagent:allow>
      <hostagent:budget>2.5</hostagent:budget>                              seconds
      <hostagent:clock>report</hostagent:clock>
      <hostagent:priority>10</hostagent:priority>
      <hostagent:availability-set>db</hostagent:availability-set>
      <hostagent:update-domain>1</hostagent:update-domain>
      <hostagent:never-together><hostagent:guest>db2</hostagent:guest></hostagent:never-together>
      <hostagent:boot-tcp>10.0.0.5:22</hostagent:boot-tcp>
    </hostagent:policy>
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hostagent.errors import Refused
from hostagent.plan import ClockPolicy
from hostagent.policy import EXPECTED, NAMES_LIMIT, Allowed, PolicyPart, Setting

NAMESPACES = "urn:hostagent:policy:"  # of every version: one that is not ours is an error as well
NAMESPACE = f"{NAMESPACES}1"
PREFIX = "hostagent"
SIZE_LIMIT = 48 * 1024  # characters: more than the largest that can be set

_E = TypeVar("_E", bound=StrEnum)

_ITEMS = {Setting.ALLOW: "method", Setting.NEVER_TOGETHER: "guest"}


class _Wrong(Exception):
    """What is there is not what may be there."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found


def policy_text(definition: Element) -> str:
    """What a guest's definition holds of policies, as read_policy() takes it; "" for none."""
    found = [element for element in definition.iterfind("metadata/*") if element.tag.startswith(f"{{{NAMESPACES}")]
    text = "".join(ElementTree.tostring(element, encoding="unicode").strip() for element in found)
    return text[: SIZE_LIMIT + 1]


def read_policy(name: str, text: str) -> PolicyPart:
    """What that guest's own policy says; Refused, naming guest and element, when it cannot be read."""
    if not text:
        return PolicyPart()
    try:
        return _read(text)
    except _Wrong as wrong:
        raise Refused(
            f"reading the policy of guest {name!r}",
            expected=wrong.expected,
            found=wrong.found,
            hint=_hint(name, text),
        ) from wrong


def _hint(name: str, text: str) -> str:
    """How to be rid of it; what is in our own namespace can be unset."""
    name = shlex.quote(name)
    others = sorted(set(re.findall(rf"{NAMESPACES}[\w.-]{{0,40}}", text)) - {NAMESPACE})
    if others:
        return f"use the hostagent that wrote it, or take it away: virsh metadata {name} {others[0]} --remove"
    return f"hostagent guest set {name} --unset all takes it away; to see it: virsh metadata {name} {NAMESPACE}"


def written_policy(part: PolicyPart) -> str:
    """What libvirt is given, which puts it into the namespace; "" for a policy that says nothing."""
    root = Element("policy")
    for setting in Setting:
        value = part.says(setting)
        if value is None:
            continue
        element = ElementTree.SubElement(root, setting)
        if isinstance(value, frozenset):
            for item in sorted(value):
                ElementTree.SubElement(element, _ITEMS[setting]).text = str(item)
        else:
            element.text = repr(value) if isinstance(value, float) else str(value)
    return ElementTree.tostring(root, encoding="unicode") if len(root) else ""


def _read(text: str) -> PolicyPart:
    if len(text) > SIZE_LIMIT:
        raise _Wrong(f"at most {SIZE_LIMIT} characters", "more")
    if "<!" in text:  # a document type could define entities
        raise _Wrong("elements alone", "<!")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  (no document type: no entities)
    except ElementTree.ParseError as problem:
        raise _Wrong(f"one <policy> of {NAMESPACE}", f"{problem}") from problem
    if root.tag != f"{{{NAMESPACE}}}policy":
        raise _Wrong(f"<policy> of {NAMESPACE}", _shown(root.tag))
    said: dict[str, object] = {}
    for tag, element in _children(root, "policy"):
        try:
            setting = Setting(tag)
        except ValueError:
            raise _Wrong(f"one of {', '.join(Setting)} in <policy>", _shown(tag)) from None
        if setting.field in said:
            raise _Wrong(f"<{setting}> once", "more of them")
        said[setting.field] = _READERS[setting](setting, element)
    part = PolicyPart(**said)  # type: ignore[arg-type]
    if (setting_at_fault := part.wrong()) is not None:
        raise _Wrong(f"in <{setting_at_fault}> {EXPECTED[setting_at_fault]}", _shown(part.says(setting_at_fault)))
    return part


def _children(element: Element, name: str) -> list[tuple[str, Element]]:
    """Each with its name in our namespace; nothing else may be in there."""
    around = "".join((element.text or "", *(child.tail or "" for child in element))).strip()
    if element.attrib or around:
        raise _Wrong(f"only elements in <{name}>", _shown(around or next(iter(element.attrib))))
    return [(_own(child.tag), child) for child in element]


def _own(tag: str) -> str:
    own = f"{{{NAMESPACE}}}"
    if not tag.startswith(own):
        raise _Wrong(f"elements of {NAMESPACE}", _shown(tag))
    return tag.removeprefix(own)


def _text(element: Element, name: str) -> str:
    if element.attrib or len(element):
        raise _Wrong(f"only a text in <{name}>", "an attribute" if element.attrib else "an element")
    return (element.text or "").strip()


def _items(setting: Setting, element: Element) -> list[str]:
    name, found = _ITEMS[setting], _children(element, setting)
    if len(found) > NAMES_LIMIT:
        raise _Wrong(f"at most {NAMES_LIMIT} in <{setting}>", f"{len(found)}")
    for tag, _ in found:
        if tag != name:
            raise _Wrong(f"<{name}> in <{setting}>", _shown(tag))
    return [_text(child, name) for _, child in found]


def _allow(setting: Setting, element: Element) -> frozenset[Allowed]:
    return frozenset(_one_of(Allowed, setting, item) for item in _items(setting, element))


def _never_together(setting: Setting, element: Element) -> frozenset[str]:
    return frozenset(_items(setting, element))


def _clock(setting: Setting, element: Element) -> ClockPolicy:
    return _one_of(ClockPolicy, setting, _text(element, setting))


def _budget(setting: Setting, element: Element) -> float:
    return float(_matched(r"[0-9]{1,4}(\.[0-9]{1,20})?|[0-9](\.[0-9]{1,17})?e-[0-9]{2,3}", setting, element))


def _priority(setting: Setting, element: Element) -> int:
    return int(_matched(r"-?[0-9]{1,4}", setting, element))


def _name(setting: Setting, element: Element) -> str:
    return _matched(r"(?s).+", setting, element)


def _matched(pattern: str, setting: Setting, element: Element) -> str:
    text = _text(element, setting)
    if re.fullmatch(pattern, text, re.ASCII) is None:
        raise _Wrong(f"in <{setting}> {EXPECTED[setting]}", _shown(text))
    return text


def _one_of(kind: Callable[[str], _E], setting: Setting, text: str) -> _E:
    try:
        return kind(text)
    except ValueError:
        raise _Wrong(f"in <{setting}> {EXPECTED[setting]}", _shown(text)) from None


def _shown(value: object) -> str:
    """Hostile, and of any length."""
    text = value if isinstance(value, str) else str(sorted(value) if isinstance(value, frozenset) else value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


_READERS: Mapping[Setting, Callable[[Setting, Element], object]] = {
    Setting.ALLOW: _allow,
    Setting.BUDGET: _budget,
    Setting.CLOCK: _clock,
    Setting.PRIORITY: _priority,
    Setting.AVAILABILITY_SET: _name,
    Setting.UPDATE_DOMAIN: _name,
    Setting.NEVER_TOGETHER: _never_together,
    Setting.BOOT_TCP: _name,
}

"""The fake's metadata: a guest's own policy in its XML, as libvirt puts it there (virDomainSetMetadata)."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hostagent.policy_xml import NAMESPACE, PREFIX

_OWN = re.compile(rf"<{PREFIX}:policy .*?</{PREFIX}:policy>", re.DOTALL)


def in_namespace(text: str) -> str:
    """An element as libvirt keeps it: in the namespace that it was given with, and all that is in it too."""
    if not text:
        return ""
    root = ElementTree.fromstring(text)  # noqa: S314 - our own
    for element in root.iter():
        element.tag = f"{PREFIX}:{element.tag}"
    root.set(f"xmlns:{PREFIX}", NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def with_policy(xml: str, text: str) -> str:
    """A definition, or a record with one in it, that has this in its metadata and no other policy."""
    bare = _OWN.sub("", xml).replace("<metadata></metadata>", "")
    if not text:
        return bare
    if "<metadata>" in bare:
        return bare.replace("<metadata>", f"<metadata>{text}", 1)
    return bare.replace("</uuid>", f"</uuid><metadata>{text}</metadata>", 1)

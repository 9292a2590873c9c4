"""What a libvirt says of its host and of the guests that it can start, read; nothing here asks libvirt.

Formats: libvirt, docs/formatcaps and docs/formatdomaincaps. Made safe: a document type is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from hostagent.errors import Refused

ARCHITECTURE = "x86_64"


@dataclass(frozen=True)
class Capabilities:
    """Of a host."""

    uuid: str
    processor: str  # its own, as XML; "" when it is not said
    emulator: str  # that guests get who ask for none
    machines: frozenset[tuple[str, str]]  # virtualisation and machine type


def read_capabilities(xml: str) -> Capabilities:
    """What `virsh capabilities` shows; Refused when it is no such thing."""
    root = parse_as(xml, "capabilities")
    processor = root.find("host/cpu")
    architectures = [one for one in root.iterfind("guest/arch") if one.get("name") == ARCHITECTURE]
    return Capabilities(
        uuid=root.findtext("host/uuid", ""),
        processor="" if processor is None else ElementTree.tostring(processor, encoding="unicode"),
        emulator=next((found for one in architectures if (found := one.findtext("emulator", ""))), ""),
        machines=frozenset(pair for one in architectures for pair in _machines(one)),
    )


def _machines(architecture: Element) -> Iterator[tuple[str, str]]:
    shared = list(architecture.iterfind("machine"))
    for domain in architecture.iterfind("domain"):
        for machine in list(domain.iterfind("machine")) or shared:
            for name in (machine.text, machine.get("canonical")):
                if name:
                    yield domain.get("type", ""), name


def read_processor_models(xml: str) -> frozenset[str]:
    """The processor models that guests can be given, of what `virsh domcapabilities` shows."""
    root = parse_as(xml, "domainCapabilities")
    models = root.iterfind("cpu/mode[@name='custom']/model")
    return frozenset(model.text or "" for model in models if model.get("usable") != "no")


def same_processor(one: str, other: str) -> bool:
    """Whether two hosts' processors are of one model with the same features; what is not known is not the same."""
    return bool(one and other) and _shape(one) == _shape(other)


def _shape(xml: str) -> tuple[str, str, tuple[str, ...]]:
    root = parse_as(xml, "cpu")
    features = sorted(feature.get("name", "") for feature in root.iterfind("feature"))
    return root.findtext("vendor", ""), root.findtext("model", ""), tuple(features)


def parse_as(xml: str, name: str) -> Element:
    """What a libvirt has said, with that root; Refused when it is no such thing."""
    doing = f"reading <{name}>"
    if "<!DOCTYPE" in xml:
        raise Refused(doing, expected="XML without a document type", found="<!DOCTYPE")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (no document type: no entities)
    except ElementTree.ParseError as problem:
        raise Refused(doing, expected="well-formed XML", found=str(problem)) from problem
    if root.tag != name:
        raise Refused(doing, expected=f"<{name}>", found=f"<{root.tag}>")
    return root

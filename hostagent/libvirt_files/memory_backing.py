"""<memoryBacking> of a guest's XML, changed so that its RAM is in shared files; pure.

Format: libvirt, docs/formatdomain, "Memory Backing". Every other byte stays as it was.
"""

from hostagent.libvirt_files.xml_spans import Element, Span, parse_xml, spliced

_SHARED_FILES = b"<source type='file'/><access mode='shared'/>"


def ram_of(domain: Element) -> tuple[str, str]:
    """Source and access that <memoryBacking> names, "" where it does not: ("memfd", "shared")."""
    return _named(domain, "source", "type"), _named(domain, "access", "mode")


def _named(domain: Element, name: str, attribute: str) -> str:
    return "".join(item.get(attribute) for part in domain.named("memoryBacking") for item in part.named(name))


def shared_ram_edit(domain: Element, data: bytes) -> tuple[Span, bytes] | None:
    """What to put where in the document that the element is from; None if there is no place for it."""
    found = domain.named("memoryBacking")
    if found:
        inner = found[0].inner
        cut = [(item.whole, b"") for item in found[0].elements if item.name in ("source", "access")]
        rest = spliced(data[: inner.end], cut)[inner.start :]
        return found[0].whole, b"<memoryBacking>" + rest + _SHARED_FILES + b"</memoryBacking>"
    after = (domain.named("currentMemory") or domain.named("memory"))[-1:]
    if not after:
        return None
    end = after[0].whole.end
    return Span(end, end), b"<memoryBacking>" + _SHARED_FILES + b"</memoryBacking>"


def with_shared_ram(xml: str) -> str:
    """A guest's XML with its RAM in shared files; as it was if that cannot be said of it, or is.

    Raises PlainXmlError for what is no plain XML.
    """
    data = xml.encode()
    domain = parse_xml(data)
    huge = any(part.named("hugepages") for part in domain.named("memoryBacking"))
    if huge or ram_of(domain) == ("file", "shared"):
        return xml
    edit = shared_ram_edit(domain, data)
    return spliced(data, [edit]).decode() if edit else xml

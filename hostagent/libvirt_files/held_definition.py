"""The definition that a held guest is restored with: marked as ours, and with the emulator it is to run on; pure.

Every other byte stays as it was. The mark stands in <metadata>, which libvirt leaves to others (docs/formatdomain); it
goes once the guest is back.
"""

from xml.etree import ElementTree

from hostagent.libvirt_files.emulator import emulator_edit
from hostagent.libvirt_files.xml_spans import Element, Span, parse_xml, spliced

NAMESPACE = "urn:hostagent:hold:1"
_PREFIX = "hostagent"

ElementTree.register_namespace(_PREFIX, NAMESPACE)


def held_definition(xml: str, *, token: str, emulator: str) -> str:
    """The definition with the mark, and another emulator. Raises PlainXmlError where there is no place for them."""
    data = xml.encode()
    domain = parse_xml(data)
    mark = ElementTree.tostring(ElementTree.Element(f"{{{NAMESPACE}}}held", token=token))
    return spliced(data, [_marked(domain, mark), emulator_edit(domain, emulator)]).decode()


def _marked(domain: Element, mark: bytes) -> tuple[Span, bytes]:
    found = domain.named("metadata")
    if not found:
        start = domain.inner.start
        return Span(start, start), b"<metadata>" + mark + b"</metadata>"
    inner = found[0].inner
    if inner.start == inner.end:  # <metadata/>
        return found[0].whole, b"<metadata>" + mark + b"</metadata>"
    return Span(inner.end, inner.end), mark

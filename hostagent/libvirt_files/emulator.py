"""The emulator that a guest's XML names, changed; pure.

Format: libvirt, docs/formatdomain. Every other byte stays as it was.
"""

from hostagent.libvirt_files.xml_spans import Element, PlainXmlError, Span, escaped, parse_xml, spliced


def emulator_edit(domain: Element, emulator: str) -> tuple[Span, bytes]:
    """What to put where in the document that the element is from; PlainXmlError where there is no place for it."""
    found = [item for devices in domain.named("devices") for item in devices.named("emulator")]
    if domain.name != "domain" or len(found) != 1:
        raise PlainXmlError(f"expected a <domain> with one <emulator>, found {len(found)} in <{domain.name}>")
    return found[0].inner, escaped(emulator)


def with_emulator(xml: str, emulator: str) -> str:
    """A guest's XML with that emulator; raises PlainXmlError for what is no plain XML, or has no place for one."""
    data = xml.encode()
    return spliced(data, [emulator_edit(parse_xml(data), emulator)]).decode()

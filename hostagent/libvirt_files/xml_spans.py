"""An XML document as a tree that knows where in the bytes each piece stands, so that a piece can be replaced
and every other byte stays as it was."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Never
from xml.parsers import expat

MAX_DEPTH = 200  # libxml2, which is what libvirt reads with, gives up at 256

# expat has already found the document well-formed where this is used, so it need not be forgiving.
_ATTRIBUTE = rb"""\s+([^\s=/>]+)\s*=\s*("[^"]*"|'[^']*')"""
_START_TAG = re.compile(rb"<[^\s/>]+((?:" + _ATTRIBUTE + rb")*)\s*/?>")
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)

# As virBufferEscapeString of libvirt writes them.
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"})
# Not in XML 1.0, or, as a tab or a line feed in an attribute, read back as a blank.
_NOT_WRITABLE = re.compile("[\x00-\x1f\ud800-\udfff\ufffe\uffff]")


class PlainXmlError(ValueError):
    """The bytes are not a plain UTF-8 XML document."""


class Span(NamedTuple):
    """A stretch of bytes, the end not included."""

    start: int
    end: int


class Remark(NamedTuple):
    """A comment or a processing instruction."""

    kind: str
    text: str


@dataclass(frozen=True)
class Attribute:
    """One attribute; the span is that of its value between the quotes, as written."""

    name: str
    value: str
    span: Span = field(compare=False)


@dataclass(frozen=True)
class Element:
    """One element. Two are equal when they say the same, wherever they stand."""

    name: str
    attributes: tuple[Attribute, ...]
    content: tuple["Element | Remark | str", ...]
    whole: Span = field(compare=False)  # from "<" to the last ">"
    inner: Span = field(compare=False)  # between the tags; nothing for <name/>

    @property
    def elements(self) -> tuple["Element", ...]:
        """The elements directly inside."""
        return tuple(item for item in self.content if isinstance(item, Element))

    @property
    def text(self) -> str:
        """The text directly inside."""
        return "".join(item for item in self.content if isinstance(item, str))

    def named(self, name: str) -> tuple["Element", ...]:
        """The elements of that name directly inside."""
        return tuple(item for item in self.content if isinstance(item, Element) and item.name == name)

    def attribute(self, name: str) -> Attribute | None:
        """The attribute of that name, or None."""
        return next((item for item in self.attributes if item.name == name), None)

    def get(self, name: str, default: str = "") -> str:
        """The value of the attribute of that name."""
        found = self.attribute(name)
        return default if found is None else found.value

    def walk(self) -> Iterator["Element"]:
        """This element and all below it, in document order."""
        yield self
        for child in self.elements:
            yield from child.walk()


@lru_cache(maxsize=64)  # a guest's record is read several times in an update, and is the same mostly
def parse_xml(data: bytes) -> Element:
    """Read a document; raises PlainXmlError for a DOCTYPE, an encoding other than UTF-8, or no XML."""
    try:
        data.decode("utf-8")
        return _Reader(data).root
    except UnicodeDecodeError as error:
        raise PlainXmlError(f"bytes that are not UTF-8 at offset {error.start}") from error
    except expat.ExpatError as error:
        raise PlainXmlError(f"no well-formed XML ({error})") from error


def spliced(data: bytes, edits: list[tuple[Span, bytes]]) -> bytes:
    """The bytes with every span replaced; the spans must not overlap."""
    pieces, position = [], 0
    for span, replacement in sorted(edits):
        if span.start < position:
            raise ValueError(f"edits overlap at offset {span.start}")
        pieces += [data[position : span.start], replacement]
        position = span.end
    return b"".join([*pieces, data[position:]])


def escaped(text: str) -> bytes:
    """Text for an attribute value or for between tags; ValueError if XML cannot carry it unchanged."""
    if found := _NOT_WRITABLE.search(text):
        raise ValueError(f"expected a text that XML can carry, found {found[0]!r} in {text!r}")
    return text.translate(_ESCAPES).encode("utf-8")


def differences(old: Element, new: Element) -> Iterator[Span]:
    """Where in the old document something is said differently in the new one."""
    if old.name != new.name or len(old.attributes) != len(new.attributes):
        yield old.whole
        return
    yield from (before.span for before, after in zip(old.attributes, new.attributes, strict=True) if before != after)
    kinds_differ = [type(item) for item in old.content] != [type(item) for item in new.content]
    pairs = [] if kinds_differ else list(zip(old.content, new.content, strict=True))
    if kinds_differ or any(before != after for before, after in pairs if not isinstance(before, Element)):
        yield old.inner
    for before, after in pairs:
        if isinstance(before, Element) and isinstance(after, Element):
            yield from differences(before, after)


@dataclass
class _Open:
    """An element whose end tag has not been seen."""

    name: str
    attributes: tuple[Attribute, ...]
    tag: Span
    content: list[Element | Remark | str] = field(default_factory=list)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.open: list[_Open] = [_Open("", (), Span(0, 0))]
        self.parser = parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True  # text in one piece between two tags, however it is written
        parser.ordered_attributes = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.CommentHandler = lambda text: self._remark("comment", text)
        parser.ProcessingInstructionHandler = self._remark
        parser.Parse(data, True)
        (self.root,) = (item for item in self.open[0].content if isinstance(item, Element))

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() != "utf-8":
            raise PlainXmlError(f"encoding {encoding}")

    def _doctype(self, name: str, *ids: object) -> Never:
        # Entities would make the tree differ from the bytes; libvirt writes none.
        raise PlainXmlError(f"a DOCTYPE ({name})")

    def _start(self, name: str, pairs: list[str]) -> None:
        if len(self.open) > MAX_DEPTH:
            raise PlainXmlError(f"more than {MAX_DEPTH} levels")
        written = _START_TAG.match(self.data, self.parser.CurrentByteIndex)
        if written is None:
            raise PlainXmlError(f"<{name}> not where it was reported")
        spans = [Span(*found.span(2)) for found in _ONE_ATTRIBUTE.finditer(self.data, *written.span(1))]
        attributes = tuple(
            Attribute(key, value, Span(span.start + 1, span.end - 1))
            for key, value, span in zip(pairs[::2], pairs[1::2], spans, strict=True)
        )
        self.open.append(_Open(name, attributes, Span(*written.span())))

    def _end(self, name: str) -> None:
        done = self.open.pop()
        inner_end = end = done.tag.end
        if not self.data.endswith(b"/>", 0, done.tag.end):
            inner_end = self.parser.CurrentByteIndex
            end = self.data.index(b">", inner_end) + 1
        whole, inner = Span(done.tag.start, end), Span(done.tag.end, inner_end)
        self.open[-1].content.append(Element(name, done.attributes, tuple(done.content), whole, inner))

    def _text(self, text: str) -> None:
        content = self.open[-1].content
        if content and isinstance(content[-1], str):
            content[-1] += text  # expat splits at its buffer's end
        else:
            content.append(text)

    def _remark(self, kind: str, text: str) -> None:
        self.open[-1].content.append(Remark(kind, text))

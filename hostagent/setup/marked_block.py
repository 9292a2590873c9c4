"""A marked block of lines in somebody else's file: put in, and taken out again byte for byte. Pure."""

import re

_BEGIN = "# >>> hostagent setup: this block is put in and taken out as a whole"
_END = "# <<< hostagent setup"
# What else was changed to put the block in, so that taking it out is exact.
_NO_NEWLINE = " (no newline stood before)"
_NO_FILE = " (the file was not there)"
_BLOCK = re.compile(
    rb"^%b(?P<note>%b|%b)?\n(?P<body>(?:.*\n)*?)%b\n"
    % tuple(re.escape(text.encode()) for text in (_BEGIN, _NO_NEWLINE, _NO_FILE, _END)),
    re.MULTILINE,
)


def read(content: bytes | None) -> str | None:
    """The block's lines, or None when there is no block."""
    found = _BLOCK.search(content or b"")
    return found["body"].decode("utf-8", "surrogateescape") if found else None


def put_in(content: bytes | None, body: str) -> bytes:
    """The file with a block of these lines at its end, in place of an earlier one; None is no file."""
    content = take_out(content)
    note = _NO_FILE if content is None else _NO_NEWLINE if content and not content.endswith(b"\n") else ""
    before = (content or b"") + (b"\n" if note == _NO_NEWLINE else b"")
    return before + f"{_BEGIN}{note}\n{body}{_END}\n".encode("utf-8", "surrogateescape")


def take_out(content: bytes | None) -> bytes | None:
    """The file as it was without the block; what others wrote around it stays."""
    if content is None:
        return None
    found = _BLOCK.search(content)
    if found is None:
        return content
    before, after = content[: found.start()], content[found.end() :]
    note = (found["note"] or b"").decode()
    if note == _NO_NEWLINE and not after:
        before = before.removesuffix(b"\n")
    rest = before + after
    return None if note == _NO_FILE and not rest else rest

"""Text from guests and other programs, made harmless: it cannot move a cursor, turn text around or break a line."""


def printable(text: str) -> str:
    """`text` with everything that is not a visible character or a plain blank written as an escape."""
    return text if text.isprintable() else "".join(map(_visible, text))


def one_line(text: str) -> str:
    """`text` on one line: line ends and runs of blanks become one blank, the rest as in `printable`."""
    return printable(" ".join(text.split()))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")

"""A block in somebody else's file comes out byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.setup import marked_block

BODY = 'memory_backing_dir = "/x"\n'


@given(
    st.none() | st.binary(max_size=300), st.text(st.characters(exclude_characters="\n\r#", codec="utf-8"), max_size=30)
)
def test_in_and_out_is_as_before(content: bytes | None, line: str) -> None:
    there = marked_block.put_in(content, line + "\n")
    assert marked_block.read(there) == line + "\n"
    assert marked_block.take_out(there) == content
    assert there.startswith(content or b"")


@given(st.none() | st.binary(max_size=100))
def test_putting_it_in_again_replaces_it(content: bytes | None) -> None:
    first = marked_block.put_in(content, "old\n")
    assert marked_block.put_in(first, BODY) == marked_block.put_in(content, BODY)


@pytest.mark.parametrize("content", [None, b"", b"user = 1\n", b"no newline", b"a\r\nb\r\n", b"\xff\xfe\n"])
def test_what_others_write_around_it_stays(content: bytes | None) -> None:
    there = b"before\n" + marked_block.put_in(content, BODY) + b"after\n"
    out = marked_block.take_out(there)
    assert out is not None
    assert out.startswith(b"before\n" + (content or b"")) and out.endswith(b"after\n")
    assert b"hostagent" not in out


def test_no_file_and_no_block() -> None:
    assert marked_block.read(None) is None
    assert marked_block.take_out(None) is None
    assert marked_block.take_out(b"x") == b"x"


def test_a_begin_without_an_end_is_no_block() -> None:
    broken = marked_block.put_in(b"a\n", BODY)[:-3]
    assert marked_block.read(broken) is None
    assert marked_block.take_out(broken) == broken

"""The Range header, case by case and against a naive implementation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import RangeNotSatisfiable
from cartd.http.ranges import ByteRange, http_date, select_range

MODIFIED = 784_111_777.75
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
LENGTH = 1000


def asked(range_header: str, length: int = LENGTH) -> ByteRange:
    return select_range(length, range_header)


HELD = {
    "bytes=0-0": (0, 1),
    "bytes=0-499": (0, 500),
    "bytes=500-": (500, 1000),
    "bytes=0-": (0, 1000),
    "bytes=999-999": (999, 1000),
    "bytes=999-5000": (999, 1000),
    "bytes=0-" + "9" * 5000: (0, 1000),
    "bytes=" + "0" * 5000 + "7-8": (7, 9),
    "bytes=-1": (999, 1000),
    "bytes=-1000": (0, 1000),
    "bytes=-1001": (0, 1000),
    "bytes=-" + "9" * 5000: (0, 1000),
    "BYTES=5-6": (5, 7),
    "  bytes=5-6\t": (5, 7),
    "bytes= 5-6": (5, 7),
    "bytes=5-6 ,": (5, 7),
    "bytes=, ,5-6": (5, 7),
}


@pytest.mark.parametrize(
    ("header", "expected"), HELD.items(), ids=lambda case: str(case)[:30].strip()
)
def test_single_range_is_parsed(header: str, expected: tuple[int, int]) -> None:
    assert asked(header) == ByteRange(*expected, partial=True)


@pytest.mark.parametrize(
    "header",
    ["bytes=1000-", "bytes=1000-1000", "bytes=1234-2000", "bytes=-0", "bytes=" + "9" * 5000 + "-"],
    ids=lambda header: str(header)[:30],
)
def test_a_range_without_a_byte_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        asked(header)


IGNORED = [
    "",
    "bytes",
    "bytes=",
    "bytes=,",
    "bytes=-",
    "bytes=--1",
    "bytes=5",
    "bytes=6-5",
    "bytes=2000-1999",
    f"bytes=2{'0' * 40}-1{'0' * 40}",
    "bytes=0-1,5-6",
    "bytes=0-1,0-1",
    "bytes=2000-,0-1",
    "bytes=0-1,nonsense",
    "bytes=5 - 6",
    "bytes =5-6",
    "bytes:5-6",
    "bytes=a-b",
    "bytes=0x0-0x1",
    "bytes=+1-2",
    "bytes=1_0-2_0",
    "bytes=1-2-3",
    "bytes=\u0661-\u0662",
    "bytes=5-6\r\n",
    "bits=0-1",
    "items=0-1",
    "0-1",
]


@pytest.mark.parametrize("header", IGNORED)
def test_any_other_range_is_ignored(header: str) -> None:
    assert asked(header) == ByteRange(0, LENGTH, partial=False)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-6"])
def test_empty_representation_ignores_the_range(header: str) -> None:
    assert asked(header, length=0) == ByteRange(0, 0, partial=False)


def test_a_date_is_rounded_down_to_its_second() -> None:
    assert http_date(MODIFIED) == DATE
    assert http_date(-0.5) == "Wed, 31 Dec 1969 23:59:59 GMT"


@given(st.integers(1, 50), st.integers(0, 60), st.integers(0, 60), st.integers(0, 2))
def test_a_range_holds_the_bytes_that_slicing_gives(
    length: int, first: int, last: int, kind: int
) -> None:
    whole = bytes(range(length))
    header, expected = [
        (f"bytes={first}-{last}", whole[first : last + 1]),
        (f"bytes={first}-", whole[first:]),
        (f"bytes=-{last}", whole[-last:] if last else b""),
    ][kind]
    if kind == 0 and last < first:
        expected = whole
    try:
        found = asked(header, length=length)
    except RangeNotSatisfiable:
        assert expected == b""
    else:
        assert whole[found.start : found.stop] == expected != b""
        assert found.partial == (kind > 0 or first <= last)


@given(
    st.one_of(st.text(), st.text("0123456789-, =").map("bytes={}".format)), st.integers(0, 10**13)
)
def test_any_text_is_parsed_without_an_exception(header: str, length: int) -> None:
    try:
        found = asked(header, length=length)
    except RangeNotSatisfiable:
        return
    assert 0 <= found.start <= found.stop <= length
    assert found.partial <= (found.start < found.stop)

"""Ranges: what is selected lies within the length, and is what plain arithmetic says.

An input is four lines: the length, ``Range``, ``If-Range`` and ``If-None-Match``; an empty line is
a header that is not there.
"""

from __future__ import annotations

import re

from cartd.errors import RangeNotSatisfiable
from cartd.ranges import ByteRange, http_date, not_modified, select

WORDS = (
    b"bytes=", b"Bytes=", b"0-0", b"-1", b"1-", b"5-3", b",", b" ", b"\t", b'"tag"', b'W/"tag"',
    b"*",
    b"Thu, 01 Jan 1970 00:00:07 GMT", b"9" * 31, b"0" * 31, b"1" + b"0" * 30, b"\n", b"\xb2",
    b"\xd9\xa1", b"10\n",
)  # fmt: skip

ETAG = '"tag"'
MODIFIED = 7.9
_MOST = 2**63
_TAGS = re.compile(r'((W/)?"[^"]*"[ \t,]*)+')
_ONE = re.compile(r"[ \t,]*([0-9]*)-([0-9]*)[ \t,]*")


def check(data: bytes) -> None:
    lines = [line.decode("latin-1") for line in data.split(b"\n")]
    digits, wanted, if_range, if_none_match, *_ = [*lines, "", "", "", ""]
    length = int("0" + "".join(re.findall("[0-9]", digits))[:30]) % _MOST
    is_held = not_modified(ETAG, if_none_match or None)
    if _TAGS.fullmatch(if_none_match):
        assert is_held == (ETAG in re.findall('"[^"]*"', if_none_match))
    elif if_none_match.strip(" \t") == "*":
        assert is_held
    elif ETAG not in if_none_match:
        assert not is_held
    try:
        chosen = select(
            length, ETAG, MODIFIED, range_header=wanted or None, if_range=if_range or None
        )
    except RangeNotSatisfiable:
        chosen = None
    assert chosen == _expected(length, wanted, if_range), (length, wanted, chosen)
    if chosen is None:
        return
    assert 0 <= chosen.start <= chosen.stop <= length
    assert chosen.partial or chosen == ByteRange(0, length, partial=False)
    if chosen.partial:
        again = f"bytes={chosen.start}-{chosen.stop - 1}"
        assert select(length, ETAG, MODIFIED, range_header=again, if_range=None) == chosen


def _expected(length: int, wanted: str, if_range: str) -> ByteRange | None:
    """By RFC 9110 and Python's own numbers; none for what cannot be satisfied."""
    whole = ByteRange(0, length, partial=False)
    unit, equals, listed = wanted.strip(" \t").partition("=")
    one = _ONE.fullmatch(listed)
    holds = not if_range or if_range.strip(" \t") in (ETAG, http_date(MODIFIED))
    if not (length and holds and equals and one and unit.lower() == "bytes"):
        return whole
    first, last = (int(part) if part else None for part in one.groups())
    if first is None and last is None:
        return whole
    if first is None:
        start, stop = max(length - (last or 0), 0), length
    elif last is not None and last < first:
        return whole
    else:
        start, stop = first, length if last is None else min(last + 1, length)
    return ByteRange(start, stop, partial=True) if start < stop else None

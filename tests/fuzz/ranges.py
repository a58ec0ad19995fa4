"""Ranges: the selected range is within the length, and is what plain arithmetic gives.

An input is two lines: the length, and ``Range``.
"""

from __future__ import annotations

import re

from cartd.errors import RangeNotSatisfiable
from cartd.http.ranges import ByteRange, select_range

WORDS = (
    b"bytes=", b"Bytes=", b"0-0", b"-1", b"1-", b"5-3", b",", b" ", b"\t", b"9" * 31, b"0" * 31,
    b"1" + b"0" * 30, b"\n", b"\xb2", b"\xd9\xa1", b"10\n",
)  # fmt: skip

_MOST = 2**63
_ONE = re.compile(r"[ \t,]*([0-9]*)-([0-9]*)[ \t,]*")


def check(data: bytes) -> None:
    lines = [line.decode("latin-1") for line in data.split(b"\n")]
    digits, wanted, *_ = [*lines, "", ""]
    length = int("0" + "".join(re.findall("[0-9]", digits))[:30]) % _MOST
    chosen = selected(length, wanted)
    assert chosen == expected(length, wanted), (length, wanted, chosen)
    if chosen is None:
        return
    assert 0 <= chosen.start <= chosen.stop <= length
    assert chosen.partial or chosen == ByteRange(0, length, partial=False)
    if chosen.partial:
        assert selected(length, f"bytes={chosen.start}-{chosen.stop - 1}") == chosen


def selected(length: int, wanted: str) -> ByteRange | None:
    """Return ``None`` for an unsatisfiable range."""
    try:
        return select_range(length, wanted)
    except RangeNotSatisfiable:
        return None


def expected(length: int, wanted: str) -> ByteRange | None:
    """Select by RFC 9110 and Python's integers; ``None`` for an unsatisfiable range."""
    whole = ByteRange(0, length, partial=False)
    unit, equals, listed = wanted.strip(" \t").partition("=")
    one = _ONE.fullmatch(listed)
    if not (length and equals and one and unit.lower() == "bytes"):
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

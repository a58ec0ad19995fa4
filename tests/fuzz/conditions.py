"""Conditions: the decision must be that of RFC 9110, section 13.2.2, implemented once more.

An input is eight lines: the method, the length, then ``If-Match``, ``If-Unmodified-Since``,
``If-None-Match``, ``If-Modified-Since``, ``Range`` and ``If-Range``; an empty line is a field that
was not sent.  The method ``-`` is a GET of a missing resource; a method followed by ``!`` has a
date that is no strong validator.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from cartd.errors import PreconditionFailed, RangeNotSatisfiable
from cartd.http.ranges import Conditions, Representation, evaluate_conditions, parse_date
from tests.fuzz.ranges import expected

WORDS = (
    b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"-", b"!", b"\n", b'"tag"', b'W/"tag"', b'"b"',
    b"*", b", ", b" ", b"Thu, 01 Jan 1970 00:00:07 GMT", b"Thu, 01 Jan 1970 00:00:06 GMT",
    b"Thursday, 01-Jan-70 00:00:08 GMT", b"Thu Jan  1 00:00:07 1970", b"bytes=0-0", b"bytes=5-",
    b"bytes=99-", b"100", b"0",
)  # fmt: skip

ETAG = '"tag"'
MODIFIED = 7.9
NOW = 1_530_000_000.0
"""In 2018, when Python's email package reads years of two digits as cartd does."""


def check(data: bytes) -> None:
    lines = [line.decode("latin-1") for line in data.split(b"\n")]
    method, digits, *fields = [*lines, *[""] * 8][:8]
    method, weak, _ = (method or "GET").partition("!")
    length = int("0" + "".join(re.findall("[0-9]", digits))[:5])
    current = None if method == "-" else Representation(length, ETAG, MODIFIED)
    method = "GET" if method == "-" else method
    given = [field or None for field in fields]
    conditions = Conditions(*given)
    assert conditions.is_conditional == any(value is not None for value in given[:5])
    try:
        decision = evaluate_conditions(
            method, conditions, current, now=NOW, date_is_strong=not weak
        )
        got = (int(decision.status), decision.selected.start, decision.selected.stop)
        if decision.status == HTTPStatus.NOT_MODIFIED:
            got = (304, 0, 0)
    except PreconditionFailed:
        got = (412, 0, 0)
    except RangeNotSatisfiable:
        got = (416, 0, 0)
    assert got == _expected(method, given, current, strong=not weak), (method, given, got)


def _expected(
    method: str, fields: list[str | None], current: Representation | None, *, strong: bool
) -> tuple[int, int, int]:
    match, unmodified, none_match, modified, range_, if_range = fields
    reads = method in ("GET", "HEAD")
    if match is not None:
        if not _names(match, current, strong=True):
            return 412, 0, 0
    elif unmodified is not None and current and _seconds(unmodified, otherwise=7) < 7:
        return 412, 0, 0
    if none_match is not None:
        if _names(none_match, current, strong=False):
            return (304 if reads else 412), 0, 0
    elif modified is not None and reads and current and _seconds(modified, otherwise=6) >= 7:
        return 304, 0, 0
    length = current.length if current else 0
    if method == "GET" and current and range_ is not None and _holds(if_range, strong=strong):
        chosen = expected(length, range_)
        if chosen is None:
            return 416, 0, 0
        return (206 if chosen.partial else 200), chosen.start, chosen.stop
    return 200, 0, length


def _names(field: str, current: Representation | None, *, strong: bool) -> bool:
    if current is None:
        return False
    if field.strip(" \t") == "*":
        return True
    tags = re.findall('(?:W/)?"[^"]*"', field)
    return ETAG in tags if strong else ETAG in [tag.removeprefix("W/") for tag in tags]


def _holds(field: str | None, *, strong: bool) -> bool:
    if field is None or field.strip(" \t") == ETAG:
        return True
    return strong and _seconds(field, otherwise=0) == 7


_YEAR_1000 = datetime(1000, 1, 1, tzinfo=UTC).timestamp()


def _seconds(field: str, *, otherwise: int) -> float:
    """Parse the date with Python's email package, if cartd accepts it as a date."""
    found = parse_date(field, NOW)
    if found is None:
        return otherwise
    if found < _YEAR_1000:
        return found  # the email package changes such years
    if not field.strip(" \t").endswith("GMT"):
        field = f"{field} +0000"  # the form of asctime has no zone
    assert found == parsedate_to_datetime(field.replace(":60", ":59")).timestamp() + (
        ":60" in field.split(" GMT")[0][-3:] or bool(re.search(r":60 \d{4}", field))
    )
    return found

"""The Range header, and the format of dates in headers (RFC 9110)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from math import floor

from cartd.errors import RangeNotSatisfiable

_WHITESPACE = " \t"
_UNIT = "bytes="
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_DIGITS = 30
"""More digits than any length has."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int
    partial: bool
    """Whether the answer is 206 with ``Content-Range``, not 200."""


def http_date(when: float) -> str:
    """Return Unix seconds as an HTTP date, rounded down (RFC 9110, section 5.6.7)."""
    return formatdate(floor(when), usegmt=True)


def select(length: int, range_header: str) -> ByteRange:
    """Return the bytes to send of a representation of ``length`` bytes (RFC 9110, section 14.2).

    A Range that is invalid or has several ranges is ignored: the complete representation is sent.
    Raises :class:`RangeNotSatisfiable` for a valid range that selects no byte.
    """
    whole = ByteRange(0, length, partial=False)
    found = _parse(range_header, length) if length else None
    if found is None:
        return whole
    start, stop = found
    if start >= stop:
        raise RangeNotSatisfiable(f"The range {range_header} selects none of the {length} bytes")
    return ByteRange(start, stop, partial=True)


def _parse(header: str, length: int) -> tuple[int, int] | None:
    """Return the single range of ``header`` (RFC 9110, section 14.1.2), cut to ``length``.

    None if the header is invalid or has several ranges; an empty range is not satisfiable.
    """
    header = header.strip(_WHITESPACE)
    if header[: len(_UNIT)].lower() != _UNIT:
        return None
    listed = (each.strip(_WHITESPACE) for each in header[len(_UNIT) :].split(","))
    wanted = [each for each in listed if each]
    match = _RANGE.fullmatch(wanted[0]) if len(wanted) == 1 else None
    if match is None:
        return None
    first, last = match.groups()
    if first and last and _order(last) < _order(first):
        return None
    if first:
        return _number(first), min(_number(last) + 1, length) if last else length
    if last:
        return max(length - _number(last), 0), length
    return None


def _order(digits: str) -> tuple[int, str]:
    """Return a key that sorts like the number, for any number of digits."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _number(digits: str) -> int:
    """Return the number, or one beyond any length: int() rejects thousands of digits."""
    size, significant = _order(digits)
    return int(significant or "0") if size <= _DIGITS else 10**_DIGITS

"""Sizes, durations and times as the page words them; ``static/page.js`` words them alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_SIZES = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
_STEPS = (("second", 1, 90), ("minute", 60, 5400), ("hour", 3600, 129600), ("day", 86400, None))
"""Name of a unit, its seconds, and below how many seconds it is used."""


def size(number: float) -> str:
    """Return a number of bytes with three digits: ``48.2 GB``."""
    unit = 0
    while number >= 999.5 and unit < len(_SIZES) - 1:
        number /= 1000
        unit += 1
    if unit == 0:
        return "1 byte" if number == 1 else f"{number:.0f} bytes"
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {_SIZES[unit]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1,200 files``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _in_units(seconds: float) -> tuple[int, str]:
    name, length = next(
        (name, length) for name, length, below in _STEPS if below is None or seconds < below
    )
    if length == 1:
        return max(10, -10 * (-round(seconds) // 10)), name  # whole tens: it is an estimate
    return max(1, round(seconds / length)), name


def duration(seconds: float) -> str:
    """Return a time: ``12 minutes``."""
    return count(*_in_units(seconds))


def span(low: float, high: float) -> str:
    """Return an estimated time: ``about 12 to 25 minutes``."""
    first, last = _in_units(low), _in_units(high)
    if first == last:
        return f"about {count(*last)}"
    if first[1] == last[1]:
        return f"about {first[0]:,} to {count(*last)}"
    return f"about {count(*first)} to {count(*last)}"


def transfer(seconds: float) -> str:
    """Return how long a transfer takes: ``about 12 minutes``."""
    return "a few seconds" if seconds < 10 else f"about {duration(seconds)}"


def percent(value: float) -> str:
    """Return a part of a hundred, rounded down, so that it is 100 only at the end."""
    return f"{int(value + 1e-9)} %"


def utc(moment: datetime) -> str:
    """Return a time in UTC; the script replaces it by the time in the browser's zone."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago it was: ``3 hours ago``."""
    passed = now - moment
    return (
        "just now" if passed < timedelta(minutes=1) else f"{duration(passed.total_seconds())} ago"
    )

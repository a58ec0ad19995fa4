"""Sizes, durations and times are worded for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cartd.page.units import age, count, percent, size, span, transfer, utc

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.00 kB"), (9_994, "9.99 kB"),
     (9_999, "10.0 kB"), (48_230_000_000, "48.2 GB"), (999_499, "999 kB"), (999_500, "1.00 MB"),
     (2 * 10**21, "2000 EB")],
)  # fmt: skip
def test_a_size_has_three_digits(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0, 3, "about 10 seconds"), (21, 55, "about 30 to 60 seconds"),
     (700, 1500, "about 12 to 25 minutes"), (3000, 10000, "about 50 minutes to 3 hours"),
     (86400 * 3, 86400 * 1500, "about 3 to 1,500 days"), (600, 610, "about 10 minutes")],
)  # fmt: skip
def test_a_span_is_rounded_to_its_unit(low: float, high: float, text: str) -> None:
    assert span(low, high) == text


def test_a_transfer_of_some_seconds_is_not_told_exactly() -> None:
    assert transfer(0.1) == "a few seconds"
    assert transfer(720) == "about 12 minutes"


@pytest.mark.parametrize(("value", "text"), [(0, "0 %"), (99.99, "99 %"), (100.0, "100 %")])
def test_a_percentage_is_a_hundred_only_at_the_end(value: float, text: str) -> None:
    assert percent(value) == text


def test_a_count_has_its_noun() -> None:
    assert [count(number, "file") for number in (0, 1, 1200)] == [
        "0 files",
        "1 file",
        "1,200 files",
    ]


def test_a_time_is_told_in_utc_and_an_age_in_its_largest_unit() -> None:
    assert utc(NOW) == "2026-11-30 12:00 UTC"
    assert age(NOW - timedelta(seconds=5), NOW) == "just now"
    assert age(NOW - timedelta(hours=3), NOW) == "3 hours ago"

"""The order of preconditions, entity tags and HTTP dates, case by case (RFC 9110, section 13)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd.errors import PreconditionFailed, RangeNotSatisfiable
from cartd.http.ranges import (
    ByteRange,
    Conditions,
    Decision,
    Representation,
    evaluate_conditions,
    http_date,
    parse_date,
)

ETAG = '"abc"'
MODIFIED = 784_111_777.75
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"
NOW = 1_800_000_000.0
CURRENT = Representation(1000, ETAG, MODIFIED)
WHOLE = Decision(HTTPStatus.OK, ByteRange(0, 1000, partial=False))


def decide(
    method: str = "GET",
    current: Representation | None = CURRENT,
    *,
    strong: bool = True,
    **fields: Any,
) -> Decision:
    """``range_`` is the Range header."""
    given = {name.rstrip("_"): value for name, value in fields.items()}
    return evaluate_conditions(method, Conditions(**given), current, now=NOW, date_is_strong=strong)


def status(method: str = "GET", current: Representation | None = CURRENT, **fields: Any) -> int:
    try:
        return int(decide(method, current, **fields).status)
    except (PreconditionFailed, RangeNotSatisfiable) as error:
        return error.code


ORDER = [
    # If-Match first, and strongly
    ({"if_match": ETAG}, 200),
    ({"if_match": "*"}, 200),
    ({"if_match": f'"x", {ETAG}'}, 200),
    ({"if_match": f"W/{ETAG}"}, 412),
    ({"if_match": '"x"'}, 412),
    ({"if_match": ""}, 412),
    ({"if_match": "abc"}, 412),
    ({"if_match": '"x"', "range_": "bytes=9999-"}, 412),
    ({"if_match": '"x"', "if_none_match": ETAG}, 412),
    ({"if_match": '"x"', "if_modified_since": DATE}, 412),
    ({"if_match": ETAG, "if_unmodified_since": BEFORE}, 200),
    ({"if_match": ETAG, "range_": "bytes=5-"}, 206),
    # else If-Unmodified-Since
    ({"if_unmodified_since": DATE}, 200),
    ({"if_unmodified_since": AFTER}, 200),
    ({"if_unmodified_since": BEFORE}, 412),
    ({"if_unmodified_since": BEFORE, "range_": "bytes=5-"}, 412),
    ({"if_unmodified_since": BEFORE, "if_none_match": ETAG}, 412),
    ({"if_unmodified_since": "yesterday"}, 200),
    ({"if_unmodified_since": f"{BEFORE}, {BEFORE}"}, 200),
    # then If-None-Match, weakly
    ({"if_none_match": ETAG}, 304),
    ({"if_none_match": f"W/{ETAG}"}, 304),
    ({"if_none_match": f'"x,y" ,\tW/{ETAG} , "z"'}, 304),
    ({"if_none_match": " * "}, 304),
    ({"if_none_match": '"x"'}, 200),
    ({"if_none_match": '"*"'}, 200),
    ({"if_none_match": "abc"}, 200),
    ({"if_none_match": '"x"', "if_modified_since": DATE}, 200),
    ({"if_none_match": ETAG, "range_": "bytes=5-"}, 304),
    ({"if_match": ETAG, "if_none_match": ETAG}, 304),
    # else If-Modified-Since
    ({"if_modified_since": DATE}, 304),
    ({"if_modified_since": AFTER}, 304),
    ({"if_modified_since": BEFORE}, 200),
    ({"if_modified_since": "yesterday"}, 200),
    ({"if_modified_since": DATE, "range_": "bytes=5-"}, 304),
    # then Range with If-Range
    ({"range_": "bytes=5-"}, 206),
    ({"range_": "bytes=9999-"}, 416),
    ({"range_": "bytes=5-", "if_range": ETAG}, 206),
    ({"range_": "bytes=5-", "if_range": f" {ETAG} "}, 206),
    ({"range_": "bytes=5-", "if_range": f"W/{ETAG}"}, 200),
    ({"range_": "bytes=5-", "if_range": '"x"'}, 200),
    ({"range_": "bytes=5-", "if_range": f'{ETAG}, "x"'}, 200),
    ({"range_": "bytes=5-", "if_range": ""}, 200),
    ({"range_": "bytes=5-", "if_range": "*"}, 200),
    ({"range_": "bytes=9999-", "if_range": '"x"'}, 200),
    ({"range_": "bytes=5-", "if_range": DATE}, 206),
    ({"range_": "bytes=5-", "if_range": BEFORE}, 200),
    ({"range_": "bytes=5-", "if_range": AFTER}, 200),
    ({"if_range": '"x"'}, 200),
]


@pytest.mark.parametrize(("fields", "expected"), ORDER, ids=lambda value: str(value)[:70])
def test_a_get_is_decided_in_the_order_of_the_rfc(fields: dict[str, Any], expected: int) -> None:
    assert status(**fields) == expected


@pytest.mark.parametrize(("fields", "expected"), ORDER, ids=lambda value: str(value)[:70])
def test_a_head_is_decided_as_a_get_without_a_range(fields: dict[str, Any], expected: int) -> None:
    assert status("HEAD", **fields) == (200 if expected in (206, 416) else expected)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_change_is_rejected_where_a_read_is_not_modified(method: str) -> None:
    assert status(method, if_none_match="*") == 412
    assert status(method, if_none_match=ETAG) == 412
    assert status(method, if_none_match='"x"') == 200
    assert status(method, if_match='"x"') == 412
    assert status(method, if_unmodified_since=BEFORE) == 412
    assert status(method, if_modified_since=AFTER) == 200
    assert decide(method, range_="bytes=5-") == WHOLE


def test_missing_representation_matches_only_its_absence() -> None:
    assert status("PUT", None, if_none_match="*") == 200
    assert status("PUT", None, if_none_match=ETAG) == 200
    assert status("PUT", None, if_match="*") == 412
    assert status("PUT", None, if_match=ETAG) == 412
    assert status("PUT", None, if_unmodified_since=BEFORE) == 200


def test_representation_without_validators() -> None:
    bare = Representation()
    assert status("DELETE", bare, if_match="*") == 200
    assert status("DELETE", bare, if_match=ETAG) == 412
    assert status("POST", bare, if_none_match="*") == 412
    assert status("POST", bare, if_none_match=ETAG) == 200
    assert status("DELETE", bare, if_unmodified_since=BEFORE) == 200


def test_weak_date_gives_no_range() -> None:
    assert decide(range_="bytes=5-", if_range=DATE, strong=False) == WHOLE
    assert decide(range_="bytes=5-", if_range=ETAG, strong=False).selected.partial


def test_selected_range_is_returned() -> None:
    found = decide(range_="bytes=5-9", if_range=ETAG)
    assert found == Decision(HTTPStatus.PARTIAL_CONTENT, ByteRange(5, 10, partial=True))
    assert decide() == WHOLE


def test_only_a_date_in_if_range_needs_to_be_strong() -> None:
    assert Conditions(range="bytes=5-", if_range=DATE).needs_strong_date
    assert not Conditions(range="bytes=5-", if_range=ETAG).needs_strong_date
    assert not Conditions(range="bytes=5-", if_range=f"W/{ETAG}").needs_strong_date
    assert not Conditions(range="bytes=5-").needs_strong_date
    assert not Conditions(if_range=DATE).needs_strong_date


def test_fields_are_read_by_their_names() -> None:
    conditions = Conditions.read(lambda name: None if name == "If-Range" else name)
    assert conditions == Conditions(
        if_match="If-Match",
        if_unmodified_since="If-Unmodified-Since",
        if_none_match="If-None-Match",
        if_modified_since="If-Modified-Since",
        range="Range",
    )
    assert conditions.has_precondition and conditions.is_conditional
    assert not Conditions().is_conditional
    assert (
        Conditions(range="bytes=5-").is_conditional
        and not Conditions(range="bytes=5-").has_precondition
    )


DATES = {
    DATE: 784_111_777,
    "Sunday, 06-Nov-94 08:49:37 GMT": 784_111_777,
    "Sun Nov  6 08:49:37 1994": 784_111_777,
    f" {DATE}\t": 784_111_777,
    "Sat, 31 Dec 2016 23:59:60 GMT": 1_483_228_800,
    "Wednesday, 01-Jan-77 00:00:00 GMT": 3_376_684_800,
    "Sunday, 01-Jan-78 00:00:00 GMT": 252_460_800,
    "Wed, 31 Dec 1969 23:59:59 GMT": -1,
}


@pytest.mark.parametrize(("text", "seconds"), DATES.items())
def test_a_date_in_any_form_of_the_rfc_is_read(text: str, seconds: int) -> None:
    # A year of two digits may be up to 50 years after 2027.
    year_2027 = 1_800_000_000.0
    assert parse_date(text, year_2027) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "yesterday", "1994-11-06", "Sun, 06 Nov 1994 08:49:37", f"{DATE}, {DATE}",
     "Sun, 06 Nov 1994 08:49:37 +0000", "Sun, 06 Nov 1994 08:49:37 gmt",
     "Sun, 32 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 24:49:37 GMT",
     "Sun, 06 Nov 1994 08:49:61 GMT", "Sun, 6 Nov 1994 08:49:37 GMT",
     "Sun, 06 Nov 0000 08:49:37 GMT", "Sun, 30 Feb 1994 08:49:37 GMT", DATE + "\n",
     "Sun, 06 Nov 1994 08:49:37 GMT\u0661"],
)  # fmt: skip
def test_invalid_http_date_is_none(text: str) -> None:
    assert parse_date(text, NOW) is None


@given(st.integers(-(2**31), 2**33))
def test_a_date_that_is_written_is_read_back(seconds: int) -> None:
    assert parse_date(http_date(seconds), NOW) == seconds

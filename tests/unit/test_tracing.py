"""Request ids and trace context: what is accepted from clients, and what is passed on."""

from __future__ import annotations

import re

import pytest
from twisted.web.http_headers import Headers

from cartd.tracing import (
    BATCH,
    LogContext,
    RandomIds,
    Trace,
    parse_request_id,
    trace_fields,
    without_context,
)

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"


def trace(*parents: str, state: tuple[bytes, ...] = ()) -> Trace:
    headers = Headers({b"traceparent": [parent.encode() for parent in parents]})
    headers.setRawHeaders(b"tracestate", list(state))
    return Trace.of(headers)


def test_random_ids_are_hex_of_one_length_and_differ() -> None:
    ids = RandomIds(10)
    found = [ids.new() for _ in range(3 * BATCH)]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("[0-9a-f]{20}", each) for each in found)


@pytest.mark.parametrize(
    "sent", ["01234567", "a" * 128, "Root=1-67891233-abcdef012345678912345678"]
)
def test_valid_request_id_is_taken_over(sent: str) -> None:
    assert parse_request_id([sent.encode()]) == sent


@pytest.mark.parametrize(
    "sent",
    [[], [b""], [b"short"], [b"a" * 129], [b"12345678", b"12345678"], [b"with space"],
     [b'"1234567"'], [b"1234567\\"], [b"1234567\x1b"], [b"1234567\xe9"],
     [b"12345678\n"], [b"<12345678>"]],
    ids=ascii,
)  # fmt: skip
def test_invalid_request_id_is_not_taken_over(sent: list[bytes]) -> None:
    assert parse_request_id(sent) is None


def test_trace_of_the_client_is_passed_on_with_a_new_parent() -> None:
    found = trace(VALID, state=(b"a=1", b"b=2"))
    first, second = found.fields(), found.fields()
    lines = rf"traceparent: 00-{TRACE_ID}-([0-9a-f]{{16}})-01\r\ntracestate: a=1,b=2\r\n"
    parents = [re.fullmatch(lines, sent.decode()) for sent in (first, second)]
    assert all(parents)
    assert len({PARENT_ID, *(parent[1] for parent in parents if parent)}) == 3


def test_no_trace_is_passed_on_apart_from_requests_and_carts() -> None:
    assert trace_fields() == b""
    assert without_context(trace_fields) == b""


@pytest.mark.parametrize(
    ("sent", "flags"),
    [("00", 0), ("01", 1), ("02", 0), ("ff", 1)],
)
def test_only_the_flag_sampled_is_passed_on(sent: str, flags: int) -> None:
    assert trace(f"00-{TRACE_ID}-{PARENT_ID}-{sent}").flags == flags


def test_trace_of_a_later_version_is_understood() -> None:
    assert trace(f"cc-{TRACE_ID}-{PARENT_ID}-01-more").trace_id == TRACE_ID


@pytest.mark.parametrize(
    "sent",
    [
        (),
        ("",),
        (VALID, VALID),
        (VALID.upper(),),
        (f"{VALID}-more",),
        (f"{VALID} ",),
        (f"ff-{TRACE_ID}-{PARENT_ID}-01",),
        (f"00-{'0' * 32}-{PARENT_ID}-01",),
        (f"00-{TRACE_ID}-{'0' * 16}-01",),
        (f"00-{TRACE_ID[1:]}-{PARENT_ID}-01",),
        (f"00-{TRACE_ID}-{PARENT_ID}-1",),
    ],
    ids=ascii,
)
def test_absent_or_invalid_traceparent_begins_a_new_trace(sent: tuple[str, ...]) -> None:
    found = trace(*sent, state=(b"a=1",))
    assert re.fullmatch("[0-9a-f]{32}", found.trace_id) and found.trace_id != TRACE_ID
    assert (found.flags, found.state) == (0, b"")
    assert found.trace_id != trace(*sent).trace_id


@pytest.mark.parametrize("state", [b"x" * 513, b"a=\xe9", b"a=1\t", b""], ids=ascii)
def test_invalid_tracestate_is_dropped(state: bytes) -> None:
    found = trace(VALID, state=(state,))
    assert (found.trace_id, found.state) == (TRACE_ID, b"")


def test_context_keeps_its_trace() -> None:
    context = LogContext(Headers({b"traceparent": [VALID.encode()]}))
    assert context.trace is context.trace
    assert context.trace.trace_id == TRACE_ID
    assert LogContext().trace.trace_id != LogContext().trace.trace_id

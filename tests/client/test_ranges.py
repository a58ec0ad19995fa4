"""The ranges of a download, its rate, and services that announce more than they send."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cartd_client import ranges
from cartd_client import transport as transports
from cartd_client.errors import InvalidResponse, ServiceUnavailable
from cartd_client.ranges import MAX_RANGE, MAX_WINDOW, RangeReader, RateLimit
from cartd_client.transport import Transport
from tests.support.scripted_server import HANG, ScriptedServer, answer

Scripted = Callable[..., ScriptedServer]
BODY = bytes(range(256)) * 4096


@given(
    st.integers(1, 10**12),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 10**6),
    st.integers(1, 32),
    st.integers(0, 10**9),
)
def test_ranges_cover_every_byte_once_and_in_order(
    length: int, share: float, first: int, jobs: int, number: int
) -> None:
    start = int(length * share)
    cut = ranges._Ranges(start, start + first, length, jobs)
    assert cut[0][0] == start
    last = cut.count - 1
    assert cut[last][1] == length
    number %= cut.count
    begin, end = cut[number]
    assert begin < end or (number == 0 and (first == 0 or start == length))
    assert end - begin <= max(MAX_RANGE, first)
    if number < last:
        assert cut[number + 1][0] == end
    # What waits in memory, one range for each job and one more, is bounded.
    size = cut[min(1, last)][1] - cut[min(1, last)][0]
    assert (jobs + 1) * size <= MAX_WINDOW + jobs * ranges.MIN_RANGE or last == 0


def test_a_rate_is_kept_over_any_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock[0] += timeout or 0
            return False

    limit = RateLimit(1_000_000)
    assert limit.part(512 << 10) == 125_000
    assert RateLimit(None).part(512 << 10) == 512 << 10
    stopped = Stopped()
    for _ in range(100):
        limit.take(100_000, stopped)
    assert clock[0] - 1000 == pytest.approx(10, abs=0.3)
    clock[0] += 60  # a pause gives no credit beyond a quarter of a second
    before = clock[0]
    for _ in range(20):
        limit.take(100_000, stopped)
    assert clock[0] - before == pytest.approx(2, abs=0.3)


def read(server: ScriptedServer, jobs: int = 1) -> bytes:
    with_retries = Transport(server.url)
    reader = RangeReader(with_retries, f"{server.url}cart", {}, jobs=jobs)
    try:
        reader.open()
        return b"".join(reader.parts())
    finally:
        reader.close()


def part(start: int, end: int, sent: int) -> bytes:
    """Return an answer that announces the bytes from ``start`` to ``end``, and sends a few."""
    content_range = f"bytes {start}-{end - 1}/{len(BODY)}"
    body = BODY[start : start + sent]
    return answer(
        206,
        body,
        length=end - start,
        content_range=content_range,
        etag='"a"',
        accept_ranges="bytes",
    )


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "FIRST_DELAY", 0.0)


def test_parts_that_break_off_at_any_byte_are_joined(scripted: Scripted) -> None:
    def answers() -> Iterable[bytes]:
        yield answer(200, BODY[:1000], length=len(BODY), etag='"a"', accept_ranges="bytes")
        at = 1000
        while at < len(BODY):
            yield part(at, len(BODY), 200_000)
            at += 200_000

    assert read(scripted(*answers())) == BODY


def test_a_service_that_never_sends_what_it_announces_is_given_up(scripted: Scripted) -> None:
    first = answer(200, BODY[:1000], length=len(BODY), etag='"a"', accept_ranges="bytes")
    server = scripted(first, part(1000, len(BODY), 0))
    with pytest.raises(ServiceUnavailable):
        read(server)
    assert len(server.requests) == 1 + ranges.MAX_EMPTY


@pytest.mark.parametrize(
    "second",
    [
        part(999, len(BODY), 10),
        part(1001, len(BODY), 10),
        answer(206, b"x", content_range="bytes 1000-1000/5", etag='"a"'),
        answer(206, b"x", content_range="bytes 1000-999/*", etag='"a"'),
        answer(206, b"x", content_range="bytes 1000-1001/*", etag='"a"'),
        answer(206, b"x", content_range="bytes=1000-1000/*", etag='"a"'),
        answer(206, b"x", etag='"a"'),
        answer(200, b"x", etag='"a"'),
        answer(204, etag='"a"'),
    ],
)
def test_a_part_that_was_not_asked_for_is_an_error(scripted: Scripted, second: bytes) -> None:
    first = answer(200, BODY[:1000], length=len(BODY), etag='"a"', accept_ranges="bytes")
    with pytest.raises(InvalidResponse):
        read(scripted(first, second))


def test_a_close_ends_a_read_that_waits(scripted: Scripted) -> None:
    first = answer(200, BODY[:100_000], length=len(BODY), etag='"a"', accept_ranges="bytes")
    server = scripted(first + HANG)
    reader = RangeReader(Transport(server.url), f"{server.url}cart", {})
    reader.open()
    parts = reader.parts()
    assert next(parts)
    reader.close()
    threads = [thread for thread in threading.enumerate() if thread.name == "fetch"]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()

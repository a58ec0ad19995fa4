"""How the client follows a cart: events, long polling, HEAD, and from one to the other."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cartd_client import Client, Manifest, Status
from cartd_client import transport as requests
from cartd_client import watch as module
from cartd_client.errors import (
    CartFailed,
    ClientError,
    InvalidResponse,
    NoSuchCart,
    ServiceUnavailable,
    WaitTimeout,
)
from cartd_client.transport import Response
from cartd_client.watch import Event, EventParser
from tests.support.cart_site import CartSite
from tests.support.scripted_server import HANG, ScriptedServer, answer

Scripted = Callable[..., ScriptedServer]
STREAM_HEAD = answer(200, length=1 << 20, content_type="text/event-stream")
NOT_HERE = answer(404, b'{"message": "Not Found"}', content_type="application/json")


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between requests, which are not made."""
    pauses: list[float] = []
    monkeypatch.setattr(module, "_pause", pauses.append)
    monkeypatch.setattr(requests, "_sleep", pauses.append)
    return pauses


def document(status: str, **more: object) -> bytes:
    return json.dumps({"uid": "u", "status": status, **more}).encode()


def event(name: str, event_id: str, status: str, **more: object) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        *(event_id.encode(), name.encode()),
        document(status, **more),
    )


def polled(status: str, etag: str = "", **more: object) -> bytes:
    return answer(200, document(status, **more), etag=etag, preference_applied="wait=30")


def statuses(server: ScriptedServer) -> list[str]:
    return [status.status for status in Client(server.url).watch("u")]


@given(st.lists(st.integers(1, 5)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@example([1] * 200, b"\r\n")
def test_events_are_the_same_however_they_are_cut(cuts: list[int], line_end: bytes) -> None:
    text = (
        b"retry: 3000\n\n:\n\nid: 3-7\nevent: status\ndata: {\ndata:}\n\n"
        b"unknown\ndata\n\nid: a b\ndata:  x\n\nevent: lost\nid: 4\n\ndata: last\n\ndata: cut"
    ).replace(b"\n", line_end)
    parser, start = EventParser(), 0
    found: list[Event] = []
    for cut in [*cuts, len(text)]:
        found += parser.feed(text[start : start + cut])
        start += cut
    assert found == [
        Event("status", b"{\n}", "3-7"),
        Event("message", b"", "3-7"),
        Event("message", b" x", "3-7"),
        Event("message", b"last", "4"),
    ]


def test_an_endless_event_is_an_error() -> None:
    parser = EventParser()
    for prefix in (b"data: ", b""):
        with pytest.raises(InvalidResponse, match="more than"):
            for _ in range(module.MAX_EVENT):
                list(parser.feed(prefix + b"x" * 65536 + (b"\n" if prefix else b"")))


def test_a_broken_stream_continues_where_it_was(scripted: Scripted, slept: list[float]) -> None:
    server = scripted(
        STREAM_HEAD + event("status", "1-1", "staging", version=1) + b"id: 1-9\ndata: {",
        STREAM_HEAD + event("status", "1-1", "staging", version=1),
        answer(502),
        STREAM_HEAD + event("status", "1-2", "bundling") + event("end", "1-3", "ready"),
    )
    assert statuses(server) == ["staging", "bundling", "ready"]
    assert server.lines == ["GET /-/carts/u/events"] * 4
    sent = [headers.get("last-event-id") for _, headers, _ in server.requests]
    assert sent == [None, "1-1", "1-1", "1-1"]
    assert len(slept) == 3


def test_a_stream_that_the_service_closes_is_opened_again(scripted: Scripted) -> None:
    whole = event("status", "1-1", "staging")
    closed = answer(200, whole, content_type="text/event-stream")
    server = scripted(closed, closed, answer(204), answer(200, document("ready")))
    assert statuses(server) == ["staging", "ready"]
    assert server.lines[3:] == ["GET /-/carts/u"]


def test_a_stream_that_a_proxy_keeps_back_is_not_waited_for(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENT_SILENCE", 0.1)
    server = scripted(STREAM_HEAD + HANG, polled("ready"))
    assert statuses(server) == ["ready"]
    assert server.lines == ["GET /-/carts/u/events", "GET /-/carts/u"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_without_a_stream_the_document_is_polled(
    scripted: Scripted, status: int, slept: list[float]
) -> None:
    server = scripted(
        answer(status, retry_after="0"),
        polled("staging", '"1"'),
        answer(304, preference_applied="wait=30"),
        polled("ready", '"2"'),
    )
    assert statuses(server) == ["staging", "ready"]
    assert server.lines == ["GET /-/carts/u/events", *["GET /-/carts/u"] * 3]
    assert [headers.get("prefer") for _, headers, _ in server.requests[1:]] == ["wait=30"] * 3
    conditions = [headers.get("if-none-match") for _, headers, _ in server.requests[1:]]
    assert conditions == [None, '"1"', '"1"']
    assert all(0.5 < pause <= module.MIN_INTERVAL for pause in slept), "at most one a second"


def test_a_service_that_does_not_hold_polls_is_asked_seldom(
    scripted: Scripted, slept: list[float]
) -> None:
    server = scripted(
        answer(503), polled("staging", '"1"'), *[answer(304)] * 20, answer(200, document("ready"))
    )
    assert statuses(server) == ["staging", "ready"]
    assert slept[0] <= module.MIN_INTERVAL < slept[5] < slept[-1] <= module.MAX_INTERVAL
    assert slept[-1] > module.MAX_INTERVAL - 1


def test_a_pacifica_cartd_is_asked_by_head(scripted: Scripted) -> None:
    def head(status: str, code: int = 204) -> bytes:
        return answer(
            code,
            x_pacifica_status=status,
            x_pacifica_message="why",
            x_pacifica_files_total="3",
            x_pacifica_files_failed="9" * 30,
        )

    server = scripted(NOT_HERE, NOT_HERE, head("staging"), answer(502), head("ready"))
    seen = list(Client(server.url).watch("u"))
    assert [status.status for status in seen] == ["staging", "ready"]
    assert (seen[1].outcome, seen[1].files.total, seen[1].files.failed) == ("complete", 3, None)
    assert server.lines[1:] == ["GET /-/carts/u", *["HEAD /u"] * 3]
    with pytest.raises(CartFailed, match="why"):
        Client(scripted(NOT_HERE, NOT_HERE, head("error", 500)).url).wait("u")
    with pytest.raises(NoSuchCart):
        Client(scripted(NOT_HERE, NOT_HERE, head("error", 404)).url).wait("u")
    with pytest.raises(InvalidResponse, match="no Cartd"):
        Client(scripted(NOT_HERE, NOT_HERE, answer(200)).url).wait("u")


def test_a_page_of_another_server_is_not_a_status(scripted: Scripted) -> None:
    page = answer(200, b"<html>", content_type="text/html")
    with pytest.raises(InvalidResponse):
        Client(scripted(page).url).wait("u")


def test_a_cart_that_is_deleted_meanwhile_is_missing(scripted: Scripted) -> None:
    gone = json.dumps({"type": "/-/problems/no-such-cart", "detail": "gone"}).encode()
    missing = answer(404, gone, content_type="application/problem+json")
    server = scripted(STREAM_HEAD + event("end", "1-1", "deleted"), missing)
    with pytest.raises(NoSuchCart, match="gone"):
        Client(server.url).wait("u")


def dripping() -> Iterator[bytes]:
    """Send a comment now and then, without end."""
    yield STREAM_HEAD + event("status", "1", "staging")
    while not threading.Event().wait(0.02):
        yield b":\n\n"


def test_a_wait_ends_at_its_time_out(scripted: Scripted) -> None:
    silent = STREAM_HEAD + event("status", "1", "staging", message="Waiting for tape") + HANG
    comments = STREAM_HEAD + b":\n\n" * 1000 + HANG
    polling = [answer(503), polled("staging", '"1"'), answer(304)]
    for held in ([silent], [comments], [dripping()], [HANG], [answer(503), HANG], polling):
        with pytest.raises(WaitTimeout, match="u is not ready in time") as over:
            Client(scripted(*held).url).wait("u", timeout=0.2)
        assert over.value.problem["cart"] == "u"
    with pytest.raises(WaitTimeout, match="in time: Waiting for tape"):
        Client(scripted(silent).url).wait("u", timeout=0.2)
    with pytest.raises(WaitTimeout):
        Client(scripted(polled("staging")).url).wait("u", timeout=0)
    assert Client(scripted(polled("ready")).url).wait("u", timeout=0).is_ready


def test_a_wait_can_be_interrupted(scripted: Scripted) -> None:
    def interrupting() -> Iterator[bytes]:
        yield STREAM_HEAD + event("status", "1", "staging")
        os.kill(os.getpid(), signal.SIGINT)
        yield HANG

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Client(scripted(interrupting()).url).wait("u")
    finally:
        signal.signal(signal.SIGINT, before)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_KEYS = (
    *("uid", "status", "outcome", "files", "bytes", "progress", "rate", "eta", "queue", "labels"),
    *("created", "version", "message", "download", "waiting", "total", "staged", "seconds", "etag"),
)


@settings(max_examples=50)
@given(
    st.fixed_dictionaries(
        {"uid": st.text() | _json, "status": st.text() | _json},
        optional={
            key: _json | st.dictionaries(st.sampled_from(_KEYS), _json, max_size=4)
            for key in _KEYS[2:]
        },
    )
)
def test_a_status_document_of_wrong_types_does_no_harm(wrong: dict[str, object]) -> None:
    try:
        status = Status.from_document(wrong)
    except InvalidResponse:
        return
    assert isinstance(status.status, str)
    assert status.files.total is None or 0 <= status.files.total < 2**63
    assert status.progress is None or 0 <= status.progress <= 100
    assert isinstance(status.is_partial, bool)


def test_numbers_of_a_status_document_are_numbers() -> None:
    wrong = {"uid": "u", "status": "staging", "progress": 1e9, "rate": {"recent": 10**400}}
    for number in (-1, True, 1.5, "1", None, 10**400):
        status = Status.from_document({**wrong, "files": {"total": number, "failed": 2}})
        assert (status.files.total, status.files.failed) == (None, 2)
    assert status.progress == 100
    assert status.rate is not None
    assert status.rate.recent is None
    for progress in (-0.5, True, float("nan"), float("inf")):
        assert Status.from_document({**wrong, "progress": progress}).progress is None


def test_a_service_that_is_restarted_is_waited_for(
    site: CartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()
    monkeypatch.undo()  # real pauses
    client = Client(site.cartd.url, on_retry=lambda retry: failed.set())
    uid = client.submit(Manifest(site.manifest({"a": b"a"})))
    site.cartd.kill()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.wait, uid, 60)
        assert failed.wait(30)
        site.cartd.start()
        assert waiting.result(60).is_ready


def test_without_streams_the_real_service_is_polled(
    auth_site: CartSite,
    tokens: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # real pauses
    client = Client(auth_site.cartd.url, token=tokens[1]["alice"], retries=5)
    request, answers = client.transport.request, []

    def noting(method: str, path: str, **options: Any) -> Response:
        answer = request(method, path, **options)
        answers.append((path, answer.headers.get("Preference-Applied")))
        return answer

    monkeypatch.setattr(client.transport, "request", noting)
    uid = client.submit(Manifest(auth_site.manifest({"a": b"a"})), "polled")
    assert client.wait(uid, timeout=60).is_ready
    assert ("-/carts/polled", "wait=30") in answers
    assert not any(path.endswith("/events") for path, _ in answers), "it was refused"


def test_no_retries_means_none(scripted: Scripted) -> None:
    cut = scripted(STREAM_HEAD + event("status", "1", "staging"))
    with pytest.raises(ServiceUnavailable, match="broke off"):
        Client(cut.url, retries=0).wait("u")
    assert issubclass(ServiceUnavailable, ClientError)

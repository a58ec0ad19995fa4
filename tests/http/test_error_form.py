"""Every error is the same JSON, whether from the routes, the site or twisted.web."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.server import Site

from cartd import __version__
from cartd.errors import INTERNAL_ERROR, error_body, reason_phrase
from cartd.http.routes import Rest
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry, manifest
from tests.support.wire import WireAnswer, wire

LIMIT = 100_000
END = b" HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /u" + END + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("site")
    with cart_site(directory, ini=f"[server]\nmax_manifest_size = {LIMIT}\n") as running:
        running.stage("ready", {"a": b"first"})
        running.cartd.post("failed", manifest([entry("no-such-id", "gone", b"")]))
        running.cartd.wait_until("failed", "error")
        yield running


def assert_one_form(answer: WireAnswer, *, to_head: bool = False) -> None:
    assert answer.headers["content-type"] == "application/json", answer
    if to_head:
        assert answer.body == b""
        return
    said = json.loads(answer.body)
    limit = {"limit": "server.max_manifest_size"} if answer.status == 413 else {}
    assert said.pop("status").startswith(f"{answer.status} ")
    message = said.pop("message")
    assert message and "Traceback" not in message
    assert said == {"traceback": "", "version": __version__, **limit}


def answer_to(site: CartSite, request: bytes) -> WireAnswer:
    """Return the response; check that nothing follows one that closes the connection."""
    to_head = request.startswith(b"HEAD ")
    with wire(site.port) as connection:
        connection.send(request)
        answer = connection.answer(to_head=to_head)
        if answer.headers.get("connection") == "close":
            rest = connection.rest()
            assert to_head or rest == b""
        return answer


ROUTED = ("GET", "HEAD", "POST", "DELETE")
UNKNOWN = ("PUT", "PATCH", "TRACE", "CONNECT", "QUERY", "FOO.!#$", "A" * 300)
NO_PATH = ["host:80", "ftp://h/u", "u", "?", "/%ff", "/%c3", "/\xff", "/é"]
NO_ROUTE = ["/u/v", "/a//b"]
NO_UID = ["/%00", "/u%00", "/%zz", "/%", "/u;v", "/a|b", "/<>", "/.", "/..", "/-", "/-/", "/%c3%a9",
          "/" + "a" * 256, "/" + "a" * 15_000, "/.u?" + "a&" * 200]  # fmt: skip


def assert_refused(site: CartSite, method: str, target: str, status: int) -> None:
    coding = "latin-1" if "\xff" in target else "utf-8"
    answer = answer_to(site, f"{method} {target}".encode(coding) + END + b"\r\n")
    assert answer.status == status, (method, target)
    assert_one_form(answer, to_head=method == "HEAD")


@pytest.mark.parametrize("target", NO_PATH, ids=ascii)
def test_target_that_is_not_a_path_is_rejected_for_every_method(
    site: CartSite, target: str
) -> None:
    for method in ROUTED + UNKNOWN:
        assert_refused(site, method, target, 400)


def test_only_options_accepts_the_asterisk_target(site: CartSite) -> None:
    for method in ROUTED + UNKNOWN:
        assert_refused(site, method, "*", 400)
    answer = answer_to(site, b"OPTIONS *" + END + b"\r\n")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, POST, PUT"


@pytest.mark.parametrize("target", NO_ROUTE)
def test_unknown_path_is_404_for_every_method(site: CartSite, target: str) -> None:
    for method in ROUTED + UNKNOWN:
        assert_refused(site, method, target, 404)


@pytest.mark.parametrize("target", NO_UID, ids=lambda target: ascii(target[:20]))
def test_invalid_uid_is_rejected(site: CartSite, target: str) -> None:
    for method in ROUTED:
        assert_refused(site, method, target, 400 if method == "POST" else 404)
    for method in UNKNOWN:
        assert_refused(site, method, target, 405)


@pytest.mark.parametrize("method", ["get", "Delete", "head", "posT"])
def test_lower_case_method_is_rejected(site: CartSite, method: str) -> None:
    for target in ("/", "/ready", "/nobody"):
        assert_refused(site, method, target, 400)
    assert site.cartd.status("ready") == ("ready", "")


CARTS = {"/nobody": 404, "/failed": 500, "/.bad": 404, "/ready?filename=": 400,
         "/ready?filename=%ff": 400, "/ready?filename=%00": 400, "/ready?filename=a%2Fb": 400,
         "/ready?filename=..": 400}  # fmt: skip


@pytest.mark.parametrize("target", CARTS)
def test_errors_of_the_routes_are_json(site: CartSite, target: str) -> None:
    answer = answer_to(site, f"GET {target}".encode() + END + b"\r\n")
    assert answer.status == CARTS[target]
    assert_one_form(answer)


def test_unsatisfiable_range_is_json(site: CartSite) -> None:
    answer = answer_to(site, b"GET /ready" + END + b"Range: bytes=999999-\r\n\r\n")
    assert answer.status == 416
    assert_one_form(answer)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", ["Range", "If-Range", "If-None-Match", "Cookie",
    "Content-Type", "Accept", "Accept-Encoding", "Authorization", "Connection", "Expect",
    "X-Forwarded-Host", "X-HTTP-Method-Override"])  # fmt: skip
def test_no_header_value_causes_a_500(site: CartSite, method: str, name: str) -> None:
    for value in (
        b"",
        b"\xff",
        b"\xc3\xa9",
        b";;==;",
        b"=",
        b'"',
        b",,,",
        b"\x7f\x01",
        b"a" * 8000,
    ):
        head = f"{method} /ready".encode() + END
        request = head + name.encode() + b": " + value + b"\r\n"
        with wire(site.port) as connection:
            connection.send(request + b"\r\n")
            assert connection.answer(to_head=method == "HEAD").status in (200, 204), value


BODIES = {
    "no body": (400, b"POST /u" + END + b"\r\n"),
    "no JSON": (400, b"POST /u" + END + b"Content-Length: 3\r\n\r\n{]}"),
    "an encoding": (501, b"POST /u" + END + b"Transfer-Encoding: gzip\r\n\r\n"),
    "two encodings": (501, b"POST /u" + END + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "chunked twice": (400, b"POST /u" + END + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n"),
    "a signed length": (400, b"POST /u" + END + b"Content-Length: +1\r\n\r\n{"),
    "a list of lengths": (400, b"POST /u" + END + b"Content-Length: 1,1\r\n\r\n{"),
    "a length in other digits": (400, b"POST /u" + END + b"Content-Length: \xb2\r\n\r\n{"),
    "a chunk below zero": (400, CHUNKED + b"-1\r\n{\r\n0\r\n\r\n"),
    "a chunk of 0x1": (400, CHUNKED + b"0x1\r\n{\r\n0\r\n\r\n"),
    "a chunk longer than said": (400, CHUNKED + b"1\r\n{}\r\n0\r\n\r\n"),
    "a long extension of a chunk": (400, CHUNKED + b"1;" + b"a" * 5000 + b"\r\n{\r\n0\r\n\r\n"),
    "a long size of a chunk": (400, CHUNKED + b"0" * 5000 + b"1\r\n{\r\n0\r\n\r\n"),
    "long trailers": (400, CHUNKED + b"1\r\n{\r\n0\r\nA: " + b"a" * 200_000 + b"\r\n\r\n"),
    "an expectation": (400, b"POST /u" + END + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n{}"),
    "too long": (413, b"POST /u" + END + b"Content-Length: 99999999\r\n\r\n"),
    "too long for a GET": (413, b"GET /u" + END + b"Content-Length: 99999999\r\n\r\n"),
    "too long, then a bad chunk": (
        413,
        CHUNKED + b"%x\r\n" % (LIMIT + 1) + b" " * (LIMIT + 1) + b"\r\nno chunk\r\n",
    ),
}


@pytest.mark.parametrize(("status", "request_"), BODIES.values(), ids=BODIES.keys())
def test_invalid_body_is_rejected_once_with_json(
    site: CartSite, status: int, request_: bytes
) -> None:
    answer = answer_to(site, request_)
    assert answer.status == status
    assert_one_form(answer)
    assert site.cartd.request("HEAD", "/u").status == 404


HEADS = {
    "a byte before": b"\0GET / HTTP/1.1\r\n\r\n",
    "two spaces": b"GET  /  HTTP/1.1\r\n\r\n",
    "tabs": b"GET\t/\tHTTP/1.1\r\n\r\n",
    "a control character": b"GET /a\x01b HTTP/1.1\r\n\r\n",
    "DEL": b"GET /a\x7f HTTP/1.1\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n\r\n",
    "HTTP/3": b"GET / HTTP/3\r\n\r\n",
    "small letters": b"GET / http/1.1\r\n\r\n",
    "another protocol": b"GET / ICY/1.1\r\n\r\n",
    "a folded first header": b"GET / HTTP/1.1\r\n X: y\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n: y\r\n\r\n",
    "a name that is not ASCII": b"GET / HTTP/1.1\r\n\xc3\xa9: y\r\n\r\n",
    "a CR in a value": b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
}


@pytest.mark.parametrize("request_", HEADS.values(), ids=HEADS.keys())
def test_invalid_head_is_rejected_with_json(site: CartSite, request_: bytes) -> None:
    answer = answer_to(site, request_)
    assert answer.status == 400
    assert_one_form(answer)


def test_internal_error_is_in_head_headers_and_get_json() -> None:
    async def fails() -> None:
        raise ZeroDivisionError("a bug")

    none: Any = None
    routes = Rest(none, none, send=none, recovered=fails, documents=none).app.resource()
    for method in (b"HEAD", b"GET"):
        connection = Site(routes, reactor=Clock()).buildProtocol(None)
        transport = StringTransport()
        connection.makeConnection(transport)
        connection.dataReceived(method + b" /u HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head, _, body = transport.value().decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 500 ")
        if method == b"HEAD":
            assert "\r\nX-Pacifica-Status: error" in head
            assert f"\r\nX-Pacifica-Message: {INTERNAL_ERROR}" in head
            assert body == ""
        else:
            assert json.loads(body)["message"] == INTERNAL_ERROR


@pytest.mark.parametrize(
    ("code", "name"),
    [
        *((413, "Content Too Large"), (414, "URI Too Long"), (416, "Range Not Satisfiable")),
        *((422, "Unprocessable Content"), (404, "Not Found"), (599, "")),
    ],
)
def test_status_phrases_are_those_of_rfc_9110(code: int, name: str) -> None:
    assert reason_phrase(code) == name
    assert json.loads(error_body(code, "why"))["status"] == f"{code} {name}".strip()

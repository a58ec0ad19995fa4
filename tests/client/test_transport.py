"""The client's requests: retries, errors and their exit statuses, redirects, hostile answers."""

from __future__ import annotations

import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme

from cartd_client import transport as module
from cartd_client.errors import (
    ClientError,
    ExitStatus,
    InvalidResponse,
    NotAllowed,
    ServiceUnavailable,
    UsageError,
    WaitTimeout,
)
from cartd_client.transport import Retry, Transport, parse_retry_after
from tests.support.free_ports import free_port
from tests.support.scripted_server import HANG, REFUSE, ScriptedServer, answer

Scripted = Callable[..., ScriptedServer]
OK = answer(200, b'{"ok": true}', content_type="application/json")


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which are not made."""
    pauses: list[float] = []
    monkeypatch.setattr(module, "_sleep", pauses.append)
    return pauses


def problem(status: int, name: str, **members: object) -> bytes:
    document = {"type": f"/-/problems/{name}", "status": status, "detail": "so it is", **members}
    return answer(status, json.dumps(document).encode(), content_type="application/problem+json")


@pytest.mark.parametrize(
    "trouble",
    [
        answer(503, b"busy", retry_after="0"),
        answer(502, b"<html>bad gateway</html>"),
        answer(504),
        answer(408),
        answer(429, retry_after="0"),
        REFUSE,
        answer(200, b'{"ok"', length=12),
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{"ok\r\n',
    ],
    ids=["503", "502", "504", "408", "429", "closed", "cut", "cut chunks"],
)
def test_trouble_that_may_pass_is_retried(scripted: Scripted, trouble: bytes) -> None:
    server = scripted(trouble, trouble, OK)
    retries: list[Retry] = []
    body = io.BytesIO(b"skipped sent")
    body.seek(8)
    response = Transport(server.url, on_retry=retries.append).request("POST", "x", body=body)
    assert response.json() == {"ok": True}
    assert [retry.attempt for retry in retries] == [1, 2]
    assert {retry.error.exit_status for retry in retries} == {ExitStatus.UNAVAILABLE}
    assert [sent for _, _, sent in server.requests] == [b"sent"] * 3
    with pytest.raises(ServiceUnavailable):
        Transport(scripted(trouble).url, retries=2).request("GET", "x")


def test_a_refused_connection_is_retried_as_often_as_wanted(slept: list[float]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailable, match="Connection refused"):
        Transport(url, retries=20).request("GET", "x")
    assert len(slept) == 20
    assert all(0 < pause <= module.MAX_DELAY for pause in slept)
    assert max(slept[:3]) < 2
    assert min(slept[10:]) >= module.MAX_DELAY / 2


def test_an_error_of_the_service_itself_is_not_retried_without_end(scripted: Scripted) -> None:
    server = scripted(answer(500, b"oops"))
    with pytest.raises(ServiceUnavailable, match="500"):
        Transport(server.url).request("GET", "x")
    assert len(server.requests) == module.SERVER_ERROR_TRIES


def test_retry_after_is_obeyed_up_to_an_hour(scripted: Scripted, slept: list[float]) -> None:
    asked = ("7", "99999999999999999999", "-3", "soon", formatdate(4e9, usegmt=True), "Mon, 99")
    server = scripted(*(answer(503, retry_after=value) for value in asked), OK)
    Transport(server.url).request("GET", "x")
    assert 7 <= slept[0] < 8
    assert slept[1] == slept[4] == module.MAX_RETRY_AFTER
    assert max(slept[2], slept[3], slept[5]) <= module.MAX_DELAY
    assert parse_retry_after(formatdate(1000, usegmt=True), now=990.0) == 10
    assert parse_retry_after(formatdate(1000, usegmt=True), now=2000.0) == 0


def test_no_attempt_begins_after_the_deadline(scripted: Scripted, slept: list[float]) -> None:
    server = scripted(answer(503, retry_after="600"))
    with pytest.raises(WaitTimeout) as over:
        Transport(server.url).request("GET", "x", deadline=time.monotonic() + 60)
    assert over.value.exit_status == ExitStatus.TIMEOUT
    assert 0 < slept[0] <= 60
    for silent in (HANG, answer(200, b"{", length=2) + HANG):
        with pytest.raises(WaitTimeout):
            late = time.monotonic() + 0.2
            Transport(scripted(silent).url).request("GET", "x", deadline=late)


@pytest.mark.parametrize(
    ("sent", "exit_status"),
    [
        (problem(400, "invalid-manifest"), ExitStatus.ERROR),
        (problem(401, "unauthenticated"), ExitStatus.NOT_ALLOWED),
        (problem(403, "forbidden"), ExitStatus.NOT_ALLOWED),
        (problem(404, "no-such-cart"), ExitStatus.NO_SUCH_CART),
        (problem(404, "not-found"), ExitStatus.ERROR),
        (problem(409, "conflict"), ExitStatus.ERROR),
        (problem(412, "precondition-failed"), ExitStatus.CART_CHANGED),
        (problem(413, "limit-exceeded", limit="server.max_entries"), ExitStatus.ERROR),
        (problem(429, "limit-exceeded", limit="carts.max"), ExitStatus.UNAVAILABLE),
        (problem(500, "cart-failed"), ExitStatus.CART_FAILED),
        (problem(500, "internal-error"), ExitStatus.UNAVAILABLE),
        (problem(503, "stopping"), ExitStatus.UNAVAILABLE),
        (problem(507, "limit-exceeded"), ExitStatus.UNAVAILABLE),
    ],
    ids=lambda value: None if isinstance(value, ExitStatus) else value.split(b"\r\n")[0].decode(),
)
def test_a_problem_has_an_exit_status(
    scripted: Scripted, sent: bytes, exit_status: ExitStatus
) -> None:
    with pytest.raises(ClientError, match=r"^so it is$") as raised:
        Transport(scripted(sent).url, retries=0).request("GET", "uid")
    assert raised.value.exit_status == exit_status
    assert raised.value.problem == json.loads(sent.partition(b"\r\n\r\n")[2])


def test_an_error_without_a_problem_gets_one_of_the_client(scripted: Scripted) -> None:
    text = json.dumps({"status": "404 Not Found", "message": "gone\x1b[2J" + "é" * 9000}).encode()
    url = scripted(answer(404, text, content_type="application/json")).url
    with pytest.raises(ClientError) as raised:
        Transport(url).request("GET", "uid")
    made = raised.value.problem
    assert made["type"] == "urn:cartd-client:no-such-cart"
    assert made["detail"].startswith("gone\\x1b[2J")
    assert len(made["detail"]) < 5000
    with pytest.raises(ClientError) as raised:
        Transport(url).request("GET", "-/carts/uid")
    assert raised.value.problem["type"] == "urn:cartd-client:not-supported"


def test_the_token_goes_to_the_service_only(scripted: Scripted) -> None:
    other = scripted(OK)
    server = scripted(
        answer(302, location="/moved"),
        answer(302, location=f"http://localhost:{other.port}/there"),
    )
    Transport(server.url, token="secret").request("GET", "x")
    assert server.lines == ["GET /x", "GET /moved"]
    assert {headers["authorization"] for _, headers, _ in server.requests} == {"Bearer secret"}
    assert other.lines == ["GET /there"]
    assert "authorization" not in other.requests[0][1]
    Transport(server.url, token="secret").request("GET", other.url)
    assert "authorization" not in other.requests[1][1]


def test_redirects_end_and_do_not_take_a_body_along(scripted: Scripted) -> None:
    loop = scripted(answer(307, location="/x"))
    with pytest.raises(InvalidResponse, match="redirects"):
        Transport(loop.url).request("GET", "x")
    assert len(loop.requests) == module.MAX_REDIRECTS + 1
    with pytest.raises(InvalidResponse, match="use that as the URL"):
        Transport(loop.url).request("POST", "x", body=b"manifest")
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/", "http://[", "http://127.0.0.1:x/"):
        with pytest.raises(InvalidResponse):
            Transport(scripted(answer(302, location=target)).url).request("GET", "x")


@pytest.mark.parametrize(
    "sent",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n"] * 300, b"\r\n"],
        [b"HTTP/1.1 200 OK\r\nx: ", *[b"y" * 65536] * 3, b"\r\n\r\n"],
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
        [answer(200, b"[" * 100_000)],
        [answer(200, b'{"a": NaN}')],
        [answer(200, b'{"a": "\xff"}')],
        [answer(200, b"9" * 10_000)],
        [answer(200, b"<html>sign in to the network</html>")],
        [answer(200, length=1 << 40), *[b" " * (1 << 20)] * 40],
    ],
    ids=["headers", "header", "SSH", "depth", "NaN", "UTF-8", "number", "HTML", "size"],
)
def test_a_hostile_answer_is_an_error(scripted: Scripted, sent: list[bytes]) -> None:
    with pytest.raises(InvalidResponse) as raised:
        Transport(scripted(sent).url).request("GET", "x").json()
    assert raised.value.exit_status == ExitStatus.ERROR


def test_a_stream_that_breaks_off_is_an_error(scripted: Scripted) -> None:
    url = scripted(answer(200, b"abc", length=9)).url
    parts = []
    with pytest.raises(ServiceUnavailable, match="broke off"):
        for part in Transport(url).request("GET", "x", stream=True).stream():
            parts.append(part)
    assert b"".join(parts) == b"abc"


@pytest.mark.parametrize(
    "url", ["", "cartd", "ftp://host/", "http://", "https://h:x/", "http://h/?q"]
)
def test_an_invalid_url_is_a_wrong_command_line(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        Transport(url)
    assert raised.value.exit_status == ExitStatus.USAGE


def test_a_url_may_have_a_prefix_and_a_login(scripted: Scripted) -> None:
    server = scripted(OK)
    transport = Transport(server.url.replace("//", "//al%40ice:p%3Aw@") + "cartd")
    assert transport.url == f"{server.url}cartd/"
    transport.request("GET", "-/carts", query={"label": "a b&c"})
    [(line, headers, _)] = server.requests
    assert line == b"GET /cartd/-/carts?label=a+b%26c HTTP/1.1"
    assert headers["authorization"] == "Basic YWxAaWNlOnA6dw=="
    assert headers["accept-encoding"] == "identity"


def test_certificates_are_verified(tmp_path: Path, scripted: Scripted) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ScriptedServer([OK], context) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(InvalidResponse, match=r"not trusted.*--cacert"):
            Transport(url).request("GET", "x")
        trusting = Transport(url, "secret", str(tmp_path / "ca.pem"))
        assert trusting.request("GET", "x").json() == {"ok": True}
        with pytest.raises(NotAllowed):
            plain = scripted(answer(401))
            trusting.request("GET", plain.url)
        assert "authorization" not in plain.requests[0][1]
    with ScriptedServer([answer(302, location=scripted(OK).url)], context) as downgrading:
        url = downgrading.url.replace("http:", "https:")
        with pytest.raises(InvalidResponse, match="neither HTTPS"):
            Transport(url, None, str(tmp_path / "ca.pem")).request("GET", "x")
    with ScriptedServer([answer(200, b"{", length=2) + HANG], context) as silent:
        held = Transport(silent.url.replace("http:", "https:"), None, str(tmp_path / "ca.pem"))
        with pytest.raises(WaitTimeout):
            held.request("GET", "x", deadline=time.monotonic() + 0.3)
    (tmp_path / "none.pem").write_text("no certificate")
    for file in ("none.pem", "missing.pem"):
        with pytest.raises(UsageError, match=file):
            Transport(url, cacert=str(tmp_path / file))


def test_a_port_without_tls_is_not_retried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_at_once() -> None:
            with listening.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(1 << 16)

        thread = threading.Thread(target=answer_at_once, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        with pytest.raises(InvalidResponse, match="no TLS"):
            Transport(f"https://127.0.0.1:{port}", retries=0).request("GET", "x")
        thread.join(10)


def test_the_proxy_of_the_environment_is_used(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = scripted(OK)
    monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//al:pw@"))
    Transport("http://cartd.invalid", "secret").request("GET", "x")
    [(line, headers, _)] = proxy.requests
    assert line == b"GET http://cartd.invalid/x HTTP/1.1"
    assert headers["proxy-authorization"] == "Basic YWw6cHc="
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Transport(scripted(OK).url).request("GET", "x").json() == {"ok": True}
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError, match="proxy"):
        Transport("http://cartd.invalid")

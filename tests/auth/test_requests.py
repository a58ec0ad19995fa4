"""A service with tokens: accepted and rejected requests, and the log."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from cartd.auth import TokenFile
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import DEADLINE, Answer, unpacked, wait_for
from tests.support.wire import Wire, wire

FILES = {"a/one": b"first"}
CREDENTIALS_REQUIRED = (
    "Authentication required: send your token as a bearer token or as the HTTP Basic password"
)
WRONG = "The name or the token is wrong"
CHALLENGES = ['Bearer realm="cartd"', 'Basic realm="cartd", charset="UTF-8"']
LARGE = 256_000_000


@dataclass(frozen=True, slots=True)
class AuthSite:
    site: CartSite
    file: TokenFile
    token: str

    @property
    def bearer(self) -> str:
        return f"Bearer {self.token}"

    def stage(self, uid: str) -> None:
        cartd = self.site.cartd
        body = self.site.manifest(FILES)
        assert cartd.request("POST", f"/{uid}", body, authorization=self.bearer).status == 201
        wait_for(lambda: self.head(uid).headers["x-pacifica-status"] == "ready")

    def head(self, uid: str, authorization: str | None = None) -> Answer:
        by = authorization or self.bearer
        return self.site.cartd.request("HEAD", f"/{uid}", authorization=by)

    def lines(self, text: str) -> list[str]:
        return [line for line in self.site.cartd.log.splitlines() if text in line]


@pytest.fixture(scope="module")
def auth_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthSite]:
    directory = tmp_path_factory.mktemp("auth_site")
    file = TokenFile(directory / "tokens")
    token = file.add("alice", admin=False)
    with cart_site(directory, ini=f"[auth]\ntoken_file = {file.path}\n") as site:
        auth_site = AuthSite(site, file, token)
        auth_site.stage("ready")
        yield auth_site
    assert token.rpartition(".")[2] not in site.cartd.log
    assert base64.b64encode(f"alice:{token}".encode()).decode() not in site.cartd.log


OTHERS = 404
"""The message for an authenticated user about a cart of another user."""


def basic(name: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()


def declare(connection: Wire, length: int, *headers: str) -> None:
    lines = ["POST /u HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", ""]
    connection.send("\r\n".join(lines).encode())


def refusal(connection: Wire) -> dict[str, object]:
    """Read a 401 after which the connection is closed."""
    raw = connection.rest()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    assert status == "HTTP/1.1 401 Unauthorized"
    assert [field[18:] for field in fields if field.startswith("WWW-Auth")] == CHALLENGES
    said: dict[str, object] = json.loads(body)
    return said


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST"])
@pytest.mark.parametrize("path", ["/ready", "/nobody"])
def test_requests_without_credentials_are_refused(
    auth_site: AuthSite, method: str, path: str
) -> None:
    connection = HTTPConnection("127.0.0.1", auth_site.site.port, timeout=DEADLINE)
    for _ in range(2):  # the connection stays of use
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 401
        assert answer.headers.get_all("WWW-Authenticate") == CHALLENGES
        assert answer.headers["Content-Type"] == "application/json"
        if method == "HEAD":
            assert answer.headers["X-Pacifica-Status"] == "error"
            assert answer.headers["X-Pacifica-Message"] == CREDENTIALS_REQUIRED
        else:
            said = json.loads(body)
            assert (said["status"], said["message"]) == ("401 Unauthorized", CREDENTIALS_REQUIRED)
    connection.close()


@pytest.mark.parametrize(
    "target", ["/", "/?x", "//", "/-/openapi.json", "http://any.example/", "http://any.example"]
)
@pytest.mark.parametrize("body", ["", "x"])
def test_the_greeting_needs_no_credentials(auth_site: AuthSite, target: str, body: str) -> None:
    with wire(auth_site.site.port) as connection:
        connection.get(target, *([f"Content-Length: {len(body)}"] if body else []))
        connection.send(body.encode())
        assert connection.answer().status == 200
        connection.get("/")
        assert connection.answer().status == 200
    assert auth_site.site.cartd.request("POST", "/").status == 405


@pytest.mark.parametrize("way", ["Bearer", "bEARER ", "Basic", "basic"])
def test_a_token_is_accepted_as_bearer_and_basic(auth_site: AuthSite, way: str) -> None:
    value = (
        basic("alice", auth_site.token).replace("Basic", way)
        if way.lower() == "basic"
        else f"{way} {auth_site.token}"
    )
    cartd = auth_site.site.cartd
    body = auth_site.site.manifest(FILES)
    assert cartd.request("POST", "/opened", body, authorization=value).status == 201
    wait_for(lambda: auth_site.head("opened").headers["x-pacifica-status"] == "ready")
    assert auth_site.head("opened", authorization=value).status == 204
    assert unpacked(cartd.get("/opened", authorization=value).body) == FILES
    assert cartd.request("DELETE", "/opened", authorization=value).status == 200


def test_curl_sends_a_token_as_bearer_and_basic(auth_site: AuthSite) -> None:
    url = f"{auth_site.site.cartd.url}/ready"
    for given in (["-u", f"alice:{auth_site.token}"], ["-H", f"Authorization: {auth_site.bearer}"]):
        done = subprocess.run(
            ["curl", "-sS", "-o", "-", "-w", "%{stderr}%{http_code}", *given, url],
            capture_output=True,
            timeout=DEADLINE,
        )
        assert done.stderr == b"200"
        assert unpacked(done.stdout) == FILES


def test_curl_sends_a_large_manifest_with_a_token_that_is_new(
    auth_site: AuthSite, tmp_path: Path
) -> None:
    """curl waits for 100 Continue, which is sent only after authentication."""
    before = len(auth_site.lines(" reloaded: "))
    token = auth_site.file.add("large", admin=False)
    wait_for(lambda: len(auth_site.lines(" reloaded: ")) > before)
    (tmp_path / "manifest").write_bytes(auth_site.site.manifest(FILES) + b" " * 2_000_000)
    done = subprocess.run(
        ["curl", "-sSv", "-u", f"large:{token}", "-X", "POST", "-T", str(tmp_path / "manifest"),
         f"{auth_site.site.cartd.url}/large"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )  # fmt: skip
    assert "< HTTP/1.1 100 Continue" in done.stderr
    assert json.loads(done.stdout) == {"message": "Cart Processing has begun"}
    auth_site.file.revoke("large")
    wait_for(lambda: auth_site.head("x", authorization=basic("large", token)).status == 401)


@pytest.mark.parametrize("authorization", [None, "Bearer alice.x", "Bearer x", "Basic !"])
@pytest.mark.parametrize("first", ["nothing", "it asks first", "some of it", "in chunks"])
def test_an_unauthenticated_body_is_refused_at_the_head(
    auth_site: AuthSite, authorization: str | None, first: str
) -> None:
    headers = [] if authorization is None else [f"Authorization: {authorization}{first[:4]}"]
    with wire(auth_site.site.port) as connection:
        if first == "in chunks":
            host = "Host: localhost"
            lines = ["POST /u HTTP/1.1", host, "Transfer-Encoding: chunked", *headers, "", "4\r\n"]
            connection.send("\r\n".join(lines).encode())
        else:
            more = ["Expect: 100-continue"] if first == "it asks first" else []
            declare(connection, LARGE, *headers, *more)
            if first == "some of it":
                connection.send(b" " * 1_000_000)
        said = refusal(connection)
        assert said["status"] == "401 Unauthorized"
        assert auth_site.site.cartd.get("/").status == 200


def test_an_unauthenticated_manifest_is_not_stored(auth_site: AuthSite) -> None:
    body = auth_site.site.manifest(FILES)
    for header in ("Authorization: Bearer alice.wrong", "X: y"):
        with wire(auth_site.site.port) as connection:
            declare(connection, len(body), header)
            connection.send(body)
            refusal(connection)
    assert not auth_site.site.query("SELECT * FROM cart WHERE cart_uid = 'u'")


GUESSES = 40
"""Concurrent requests from one address."""


def test_failed_tokens_lock_out_no_one_behind_a_gateway(auth_site: AuthSite) -> None:
    head = (
        "HEAD /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n"
    )
    with ExitStack() as stack:
        guessing = [stack.enter_context(wire(auth_site.site.port)) for _ in range(GUESSES)]
        for number, connection in enumerate(guessing):
            connection.send(head.format(f"cartd_alice.{number}").encode())
        # A way of sending it that the service has not seen before.
        assert auth_site.head("ready", f"bEARER   {auth_site.token}").status == 204
        assert all(refused.rest().startswith(b"HTTP/1.1 401 ") for refused in guessing)


def test_an_authenticated_body_over_the_limit_is_refused(auth_site: AuthSite) -> None:
    assert auth_site.head("ready").status == 204
    with wire(auth_site.site.port) as connection:
        declare(connection, LARGE + 1, f"Authorization: {auth_site.bearer}")
        assert connection.answer().status == 413


def test_a_failed_attempt_is_logged_once_without_the_secret(
    auth_site: AuthSite,
) -> None:
    name = "mallory\r\nforged\u2028 [x#info] \x1b[2J {name}"
    before = len(auth_site.site.cartd.log)
    refused = auth_site.head("ready", authorization=basic(name, "the-secret"))
    assert refused.status == 401
    spelt = r"'mallory\r\nforged\u2028 [x#info] \x1b[2J {name}'"
    assert refused.headers["x-pacifica-message"] == f"{WRONG}: {spelt}"
    assert auth_site.head("ready", authorization="Digest the-secret").status == 401
    refusals: list[str] = []
    requests: list[str] = []
    for line in auth_site.site.cartd.log[before:].splitlines():
        (requests if "access_log#info]" in line else refusals).append(line)
    assert len(requests) == 2
    reasons = [
        f"{WRONG}: {spelt}",
        "The Authorization header is neither a bearer token nor HTTP Basic",
    ]
    for line, reason in zip(refusals, reasons, strict=True):
        asked = f'Refused 401 127.0.0.1 "HEAD /ready" {json.dumps(reason)}'
        assert line[: line.rindex(" ")].endswith(f"[cartd.rejection_log#info] {asked}")
    assert not auth_site.lines("the-secret")


@pytest.mark.parametrize("sent", ["as a name", "with a point"])
def test_a_token_sent_as_a_name_is_not_logged(auth_site: AuthSite, sent: str) -> None:
    secret = auth_site.token.rpartition(".")[2]
    given = {
        "as a name": basic(auth_site.token, ""),
        "with a point": f"Bearer {auth_site.token}.",
    }[sent]
    refused = auth_site.head("ready", authorization=given)
    assert refused.status == 401
    assert secret not in refused.headers["x-pacifica-message"]
    assert not auth_site.lines(secret)


def test_revoked_tokens_and_an_unreadable_file_are_refused(
    auth_site: AuthSite,
) -> None:
    bob = f"Bearer {auth_site.file.add('bob', admin=False)}"
    wait_for(lambda: auth_site.head("ready", authorization=bob).status == OTHERS)
    good = auth_site.file.path.read_text()
    auth_site.file.path.write_text("bob\n")
    wait_for(lambda: auth_site.head("ready", authorization=bob).status == 503)
    refused = auth_site.head("ready")
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    assert refused.headers["x-pacifica-status"] == "error"
    body = auth_site.site.manifest(FILES)
    by = auth_site.bearer
    assert auth_site.site.cartd.request("POST", "/new", body, authorization=by).status == 503
    assert auth_site.site.cartd.request("DELETE", "/ready", authorization=by).status == 503
    assert auth_site.site.cartd.get("/").status == 200
    [line] = auth_site.lines("NO TOKEN IS ACCEPTED")
    assert "tokens: line 1: must be NAME ROLE HASH: NO TOKEN IS ACCEPTED" in line
    auth_site.file.path.write_text(good)
    auth_site.file.revoke("bob")
    wait_for(lambda: auth_site.head("ready", authorization=bob).status == 401)
    assert auth_site.head("ready").status == 204

"""What the real fail2ban matches in a log: each rejection with its address, nothing forged."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cartd.auth import TokenFile
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import DEADLINE, entry, manifest, wait_for
from tests.support.wire import Wire, wire

FILTER = Path(__file__).parents[2] / "contrib/fail2ban/filter.d/cartd.conf"
LINE = b'2026-11-24T06:30:56+0000 [cartd.rejection_log#info] Refused 401 198.51.100.9 "GET /" ""'
ENCODED = LINE.replace(b" ", b"%20").replace(b'"', b"%22")


@pytest.fixture(scope="module", params=["text", "json"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CartSite]:
    with cart_site(
        tmp_path_factory.mktemp("site"),
        ini="[server]\nmax_manifest_size = 9999\n[archiveinterface]\nmax_attempts = 1\n"
        f"[log]\nformat = {request.param}\n",
    ) as running:
        yield running


def log_of(site: CartSite) -> bytes:
    return (site.cartd.directory / "cartd.log").read_bytes()


def banned(
    log: bytes, directory: Path, *, options: str = "", journal: bool = False
) -> dict[str, int]:
    """Return how often fail2ban finds each address in a log file, or in the journal.

    Lines of the journal have no date of their own, but host and process in front.
    """
    read = directory / "log"
    begin, date = b"@2026-11-24T06:30:56+0000@h twistd[9]: ", "^@%Y-%m-%dT%H:%M:%S%z@"
    read.write_bytes(re.sub(rb"(?m)^(?=.)", begin, log) if journal else log)
    dates = ("-d", date) if journal else ()
    found = subprocess.run(
        ["fail2ban-regex", *dates, "-o", "ip", read, f"{FILTER}{options}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Counter(found.stdout.split())


def refuse(connection: Wire, status: int, request: bytes) -> None:
    connection.send(request)
    assert connection.answer().status == status


REFUSED = [
    (400, b"no HTTP\r\n\r\n"),
    (400, b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"),
    (400, b"GET x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    (400, b"GET /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    (400, b"POST /.hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    (400, b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{"),
    (405, b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"),
    (413, b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n"),
]


@pytest.mark.parametrize("journal", [False, True], ids=["file", "journal"])
def test_each_rejection_matches_once(site: CartSite, tmp_path: Path, journal: bool) -> None:
    begin = len(log_of(site))
    for status, request in REFUSED:
        with wire(site.port) as connection:
            refuse(connection, status, request)
    assert site.cartd.get("/guess").status == 404
    assert site.cartd.get("/").status == 200
    log = log_of(site)[begin:]
    assert banned(log, tmp_path, journal=journal) == {"127.0.0.1": len(REFUSED)}


def test_unknown_carts_have_a_separate_jail(site: CartSite, tmp_path: Path) -> None:
    begin = len(log_of(site))
    assert site.cartd.get("/guess").status == 404
    assert site.cartd.request("HEAD", "/guess").status == 404
    assert site.cartd.get("/guess?filename=/").status == 400
    log = log_of(site)[begin:]
    assert banned(log, tmp_path, options='[statuses="404"]') == {"127.0.0.1": 2}


FORGING = [
    b"GET /%0a" + ENCODED + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + ENCODED + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b'GET /"%20' + ENCODED + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /x?filename=%0a" + ENCODED + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /.x HTTP/1.1\r\nHost: localhost\r\nUser-Agent: "
    + LINE
    + b"\r\nReferer: "
    + LINE
    + b"\r\n\r\n",
    b"GET /.x HTTP/1.1\r\nHost: localhost\r\nUser-Agent: \x0b\x85" + LINE + b"\r\n\r\n",
    b"GET /.x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.9\r\n"
    b"Forwarded: for=198.51.100.9\r\nX-Real-IP: 198.51.100.9\r\n\r\n",
]


@pytest.mark.parametrize("journal", [False, True], ids=["file", "journal"])
def test_log_injection_cannot_ban_another_address(
    site: CartSite, tmp_path: Path, journal: bool
) -> None:
    begin = len(log_of(site))
    for request in FORGING:
        with wire(site.port) as connection:
            connection.send(request)
            assert connection.answer().status in (400, 404)
    # Paths may contain anything but NUL, and are logged when they fail.
    undated = LINE[LINE.index(b" ") :].decode()
    for path in (f"\n{undated}", *(f"{sign}{LINE.decode()}" for sign in "\n\r\x0b\x85\u2028")):
        files = manifest([entry("none", path, b"")])
        assert site.cartd.post("forging", files).status == 201
        site.cartd.wait_until("forging", "error")
    log = log_of(site)[begin:]
    assert log.count(b"Refused 401 198.51.100.9") >= 6
    found = banned(log, tmp_path, journal=journal, options='[statuses="400|401|404"]')
    assert found == {"127.0.0.1": len(FORGING)}


def test_log_line_fits_into_one_journal_entry(site: CartSite) -> None:
    begin = len(log_of(site))
    agent = b"\xff" * 15_000
    with wire(site.port) as connection:
        refuse(
            connection,
            404,
            b"GET /x HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + agent + b"\r\n\r\n",
        )
    log = log_of(site)[begin:]
    assert b"GET /x HTTP/1.1" in log
    assert max(map(len, log.split(b"\n"))) < 48 * 1024


@pytest.fixture(scope="module")
def auth_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("auth_site")
    file = TokenFile(directory / "tokens")
    token = file.add("alice", admin=False)
    (directory / ".netrc").write_text(f"machine 127.0.0.1 login alice password {token}\n")
    (directory / ".netrc").chmod(0o600)
    with cart_site(directory, ini=f"[auth]\ntoken_file = {file.path}\n") as site:
        bearer = f"Bearer {token}"
        body = site.manifest({"a": b"data"})
        assert site.cartd.request("POST", "/mine", body, authorization=bearer).status == 201
        wait_for(lambda: site.cartd.get("/mine", authorization=bearer).status == 200)
        yield site


DOWNLOADERS = {
    "wget": ["wget", "-q", "-O", "/dev/null"],
    "curl": ["curl", "-sf", "--anyauth", "--netrc", "-o", "/dev/null"],
}


@pytest.mark.parametrize("client", DOWNLOADERS.values(), ids=DOWNLOADERS)
def test_client_that_waits_for_a_401_challenge_is_not_banned(
    auth_site: CartSite, tmp_path: Path, client: list[str]
) -> None:
    begin = len(log_of(auth_site))
    asked = [*client, f"{auth_site.cartd.url}/mine"]
    subprocess.run(asked, check=True, env={"HOME": str(auth_site.root)}, timeout=DEADLINE)
    log = log_of(auth_site)[begin:]
    assert log.count(b'"GET /mine HTTP/1.1" 401 ') == 1
    assert banned(log, tmp_path) == {}


def test_wrong_token_matches_and_missing_token_does_not(
    auth_site: CartSite, tmp_path: Path
) -> None:
    begin = len(log_of(auth_site))
    for given in ({}, {"authorization": "Bearer alice.wrong"}, {"authorization": "nonsense"}):
        assert auth_site.cartd.get("/mine", **given).status == 401
        assert auth_site.cartd.request("POST", "/new", b"{}", **given).status == 401
    assert banned(log_of(auth_site)[begin:], tmp_path) == {"127.0.0.1": 4}


def test_browser_probes_are_not_counted_as_guesses(site: CartSite, tmp_path: Path) -> None:
    begin = len(log_of(site))
    for path in ("/favicon.ico", "/favicon.ico?v=1", "/robots.txt", "/apple-touch-icon.png"):
        assert site.cartd.get(path).status == 404
        assert site.cartd.request("HEAD", path).status == 404
    assert site.cartd.request("OPTIONS", "/guess").status == 204
    assert banned(log_of(site)[begin:], tmp_path, options='[statuses="404|405"]') == {}

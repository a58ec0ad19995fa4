"""What an ``ssl:`` endpoint agrees to: versions, ciphers, and for how long it waits."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.static import Data

from cartd.config import parse_tls_endpoint
from cartd.site import IDLE_TIMEOUT, STALL_TIMEOUT, LimitedSite
from cartd.tls import ServerTls
from tests.running_cartd import DEADLINE, unpacked
from tests.tls_site import NAME, TlsSite, tls_site

FILES = {"a": b"over TLS" * 10_000}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    with tls_site(tmp_path_factory.mktemp("tls"), trustme.CA()) as running:
        running.site.stage("mine", FILES)
        yield running


# --- what is agreed on --------------------------------------------------------------------------


def at_any_price(behind: TlsSite) -> ssl.SSLContext:
    """A client that would take whatever OpenSSL still has."""
    context = behind.context()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_versions_of_old_are_refused(behind: TlsSite, version: ssl.TLSVersion) -> None:
    context = at_any_price(behind)
    context.maximum_version = version
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"), behind.wire(context):
        pass


@pytest.mark.parametrize(
    ("version", "agreed"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
def test_newer_ones_are_agreed_on(behind: TlsSite, version: ssl.TLSVersion, agreed: str) -> None:
    context = at_any_price(behind)
    context.maximum_version = version
    with behind.wire(context) as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        assert connection.socket.version() == agreed
        connection.get("/mine?filename=data.tar")
        assert unpacked(connection.answer().body) == FILES


@pytest.mark.parametrize(
    ("cipher", "welcome"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("ECDHE-ECDSA-AES256-SHA384", False),
        ("ECDHE-ECDSA-AES128-SHA", False),
    ],
)
def test_ciphers_are_such_as_authenticate_what_they_encrypt(
    behind: TlsSite, cipher: str, welcome: bool
) -> None:
    context = at_any_price(behind)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    if welcome:
        with behind.wire(context) as connection:
            assert isinstance(connection.socket, ssl.SSLSocket)
            assert connection.socket.cipher() == (
                cipher,
                "TLSv1.2",
                128 if "128" in cipher else 256,
            )
    else:
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"), behind.wire(context):
            pass


def test_a_client_may_not_shake_hands_again(behind: TlsSite) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with behind.plainly() as plain:
        plain.setblocking(True)
        connection = SSL.Connection(context, plain)
        connection.set_connect_state()
        connection.do_handshake()
        connection.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            connection.do_handshake()


def test_curl_believes_it_and_downloads(behind: TlsSite) -> None:
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", "--cacert", str(behind.roots)),
            *("--resolve", f"{NAME}:{behind.port}:127.0.0.1"),
            f"https://{NAME}:{behind.port}/mine?filename=data.tar",
        ],
        capture_output=True,
        timeout=DEADLINE,
    )
    assert done.stderr == b""
    assert unpacked(done.stdout) == FILES


# --- how long is waited -------------------------------------------------------------------------


class Socket(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None: ...


class Connected:
    """A client's connection to a site over TLS, with a clock that the test moves."""

    def __init__(self, directory: Path) -> None:
        pem = directory / "server.pem"
        authority = trustme.CA()
        authority.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(str(pem))
        self.clock = Clock()
        site = LimitedSite(Data(b"here", "text/plain"), self.clock, max_body=100)
        tls = ServerTls(parse_tls_endpoint(f"ssl:443:privateKey={pem}"))
        factory = TLSMemoryBIOFactory(tls, False, site, self.clock)
        self.transport = Socket()
        self.server = factory.buildProtocol(None)
        assert self.server is not None
        self.server.makeConnection(self.transport)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        self._to_client, self._to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self._to_client, self._to_server, server_hostname=NAME)

    @property
    def broken(self) -> bool:
        return bool(self.transport.disconnecting or self.transport.disconnected)

    def hello(self) -> bytes:
        """What the client begins with."""
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()
        return self._to_server.read()

    def exchange(self, step: Callable[[], object]) -> None:
        """Let the client do something, for which it may need answers."""
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                self.pump()
            else:
                self.pump()
                return

    def pump(self) -> None:
        assert self.server is not None
        if sent := self._to_server.read():
            self.server.dataReceived(sent)
        self.clock.advance(0)  # small writes are put together until then
        self._to_client.write(self.transport.value())
        self.transport.clear()


@pytest.fixture
def connected(tmp_path: Path) -> Connected:
    return Connected(tmp_path)


def test_a_client_that_never_begins_is_left(connected: Connected) -> None:
    connected.clock.advance(IDLE_TIMEOUT - 1)
    assert not connected.broken
    connected.clock.advance(1)
    assert connected.broken


def test_one_that_drips_its_handshake_wins_no_time(connected: Connected) -> None:
    assert connected.server is not None
    for byte in connected.hello()[: int(IDLE_TIMEOUT) - 1]:
        connected.clock.advance(1)
        assert not connected.broken
        connected.server.dataReceived(bytes([byte]))
    connected.clock.advance(1)
    assert connected.broken


def test_one_that_never_says_goodbye_is_left(connected: Connected) -> None:
    connected.exchange(connected.client.do_handshake)
    connected.exchange(lambda: connected.client.write(b"GET / HTTP/1.0\r\n\r\n"))
    answers: list[bytes] = []
    connected.exchange(lambda: answers.append(connected.client.read()))
    assert answers[0].endswith(b"here")
    assert not connected.broken
    connected.clock.pump([1.0] * int(STALL_TIMEOUT + 60))
    assert connected.broken

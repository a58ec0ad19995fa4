"""TLS handshakes with an ``ssl:`` endpoint: versions, ciphers, no renegotiation."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator

import pytest
import trustme
from OpenSSL import SSL

from tests.support.running_cartd import DEADLINE, unpacked
from tests.support.tls_site import NAME, TlsSite, tls_site

FILES = {"a": b"over TLS" * 10_000}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    with tls_site(tmp_path_factory.mktemp("tls"), trustme.CA()) as running:
        running.site.stage("mine", FILES)
        yield running


def at_any_price(behind: TlsSite) -> ssl.SSLContext:
    """Return a client context that accepts every version and cipher of OpenSSL."""
    context = behind.context()
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_tls_versions_are_rejected(behind: TlsSite, version: ssl.TLSVersion) -> None:
    context = at_any_price(behind)
    context.maximum_version = version
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"), behind.wire(context):
        pass


@pytest.mark.parametrize(
    ("version", "agreed"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
def test_new_tls_versions_are_accepted(
    behind: TlsSite, version: ssl.TLSVersion, agreed: str
) -> None:
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
def test_ciphers_are_aead_only(behind: TlsSite, cipher: str, welcome: bool) -> None:
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


def test_renegotiation_is_rejected(behind: TlsSite) -> None:
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


def test_curl_verifies_the_certificate_and_downloads(behind: TlsSite) -> None:
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

"""TLS handshakes with the archive: versions and client certificates."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
import trustme
from OpenSSL import SSL
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory

from cartd.archive import TlsPolicy
from tests.support.archive_client_fixture import ClientFactory, Offers, asking, failure_of

pytest_plugins = ("tests.support.archive_fixtures",)

HOST = "127.0.0.1"
VERSIONS = pytest.mark.parametrize(
    "version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"]
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def roots(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "roots.pem"))
    return tmp_path / "roots.pem"


def shown(directory: Path, certificate: trustme.LeafCert) -> Path:
    """A file with a client certificate, its chain and its key."""
    path = directory / "cartd.pem"
    path.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    return path


@pytest.mark.parametrize(
    ("host", "sent"),
    [(b"Archive.example.", b"\0\x0farchive.example"), (b"127.0.0.1", None), (b"::1", None)],
)
def test_server_name_indication_has_names_only(host: bytes, sent: bytes | None) -> None:
    creator = TlsPolicy().creatorForNetloc(host, 443)
    factory = TLSMemoryBIOFactory(creator, True, Factory.forProtocol(Protocol))
    transport = StringTransport()
    factory.buildProtocol(None).makeConnection(transport)
    client_hello = transport.value()
    assert client_hello.startswith(b"\x16\x03\x01")
    assert host not in client_hello
    assert sent is None or sent in client_hello


@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION], ids=["1.0", "1.1"])
@pytest_twisted.ensureDeferred
async def test_an_archive_with_old_tls_is_rejected(
    make_client: ClientFactory, authority: trustme.CA, roots: Path, version: int
) -> None:
    offered = Offers(authority.issue_cert(HOST), newest=version)
    async with asking(make_client, tls=offered, ca_file=roots) as asked:
        error = await failure_of(asked.archive.status("7"))
        assert str(error) == ("the archive (127.0.0.1) does not support TLS 1.2 or newer")
        assert error.outage
        assert asked.faulty.requests == []


@VERSIONS
@pytest_twisted.ensureDeferred
async def test_a_client_certificate_is_sent_on_request(
    make_client: ClientFactory, authority: trustme.CA, roots: Path, tmp_path: Path, version: int
) -> None:
    clients = trustme.CA()
    own = clients.create_child_ca().issue_cert("cartd.example")
    offered = Offers(authority.issue_cert(HOST), newest=version, clients_of=clients)
    async with asking(
        make_client, tls=offered, ca_file=roots, cert_file=shown(tmp_path, own)
    ) as asked:
        asked.faulty.put("7", b"data")
        assert await asked.fetch("7") == b"data"


@VERSIONS
@pytest.mark.parametrize("case", ["none", "of-a-stranger"])
@pytest_twisted.ensureDeferred
async def test_a_missing_client_certificate_is_reported(
    make_client: ClientFactory,
    authority: trustme.CA,
    roots: Path,
    tmp_path: Path,
    version: int,
    case: str,
) -> None:
    offered = Offers(authority.issue_cert(HOST), newest=version, clients_of=trustme.CA())
    cert_file = None
    message = "(archiveinterface.cert_file)"
    if case != "none":
        cert_file = shown(tmp_path, trustme.CA().issue_cert("cartd.example"))
        message = (
            "the archive (127.0.0.1) rejects cartd's client certificate"
            " (archiveinterface.cert_file): unknown ca"
        )
    elif version == SSL.TLS1_3_VERSION:
        message = (
            "the archive (127.0.0.1) requires a client certificate, and"
            " archiveinterface.cert_file names none"
        )
    async with asking(make_client, tls=offered, ca_file=roots, cert_file=cert_file) as asked:
        error = await failure_of(asked.archive.status("7"))
        assert message in str(error)
        assert error.outage
        assert asked.faulty.requests == []

"""The running service reloads changed certificates, for clients and for the archive."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest_twisted
import trustme
from twisted.internet import reactor as _reactor
from twisted.internet.threads import deferToThread

from tests.support.archive_client_fixture import Offers
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import (
    RunningCartd,
    entry,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)
from tests.support.tls_site import LARGE, NAME, TlsSite, tls_site


def serves_certificate_of(behind: TlsSite, authority: trustme.CA) -> bool:
    """Return whether a new connection gets a certificate of this authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    try:
        with behind.wire(context) as connection:
            connection.get("/")
            return connection.answer().status == 200
    except ssl.SSLCertVerificationError:
        return False


def test_new_connections_get_the_reloaded_certificate(tmp_path: Path) -> None:
    first, second, third = trustme.CA(), trustme.CA(), trustme.CA()
    pem = tmp_path / "server.pem"

    def put(certificate: trustme.LeafCert) -> None:
        beside = pem.with_suffix(".new")
        beside.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
        beside.rename(pem)

    with tls_site(tmp_path, first) as behind:
        behind.site.stage("large", {"large": LARGE})
        with behind.wire() as old:
            old.get("/large?filename=data.tar")
            wait_for(lambda: behind.site.open_files("large"))
            put(second.issue_cert(NAME))
            wait_for(lambda: serves_certificate_of(behind, second))
            assert not serves_certificate_of(behind, first)
            # Half of the next reload: the certificate without its key.
            torn = third.issue_cert(NAME).cert_chain_pems[0].bytes()
            pem.write_bytes(second.issue_cert(NAME).private_key_pem.bytes() + torn)
            wait_for(lambda: "not reloaded, the previous one stays in use" in behind.site.cartd.log)
            assert serves_certificate_of(behind, second)
            put(third.issue_cert(NAME))
            wait_for(lambda: serves_certificate_of(behind, third))
            assert unpacked(old.answer().body) == {"large": LARGE}
            old.get("/nobody")
            assert old.answer().status == 404
        log = behind.site.cartd.log
        [line] = [line for line in log.splitlines() if "retrying every" in line]
        assert f"privateKey {pem} does not match the first certificate" in line
        assert log.count(f"The certificate of ssl:{behind.port} reloaded") == 2


INI = """
[archiveinterface]
url = {url}
ca_file = roots.pem
cert_file = own.pem
key_file = own.key
"""


def write(directory: Path, certificate: trustme.LeafCert) -> None:
    (directory / "own.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
    (directory / "own.key").write_bytes(certificate.private_key_pem.bytes())


def reports_rejection(cartd: RunningCartd, uid: str, reason: str) -> bool:
    state, message = cartd.status(uid)
    assert state == "staging", message
    return reason in message


@pytest_twisted.ensureDeferred
async def test_carts_wait_for_a_valid_client_certificate(
    tmp_path: Path,
) -> None:
    authority, clients, strangers = trustme.CA(), trustme.CA(), trustme.CA()
    directory = tmp_path / "cartd"
    directory.mkdir()
    authority.cert_pem.write_to_path(str(directory / "roots.pem"))
    write(directory, strangers.issue_cert("cartd.example"))
    archive = FaultyArchive(_reactor)
    url = archive.listen(Offers(authority.issue_cert("127.0.0.1"), clients_of=clients))
    archive.put("7", b"data")
    running = running_cartd(directory, archive="", ini=INI.format(url=url))
    cartd = await deferToThread(running.__enter__)
    try:
        await deferToThread(cartd.post, "mine", manifest([entry("7", "a", b"data")]))
        refused = (
            "the archive (127.0.0.1) rejects cartd's client certificate"
            " (archiveinterface.cert_file): unknown ca"
        )
        await deferToThread(wait_for, lambda: reports_rejection(cartd, "mine", refused))
        write(directory, clients.issue_cert("cartd.example"))
        await deferToThread(cartd.wait_until, "mine", "ready")
        assert "The TLS configuration for the archive reloaded" in cartd.log
    finally:
        await deferToThread(running.__exit__, None, None, None)
        await archive.stop()

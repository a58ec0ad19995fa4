"""TLS to the archive: accepted and rejected certificates, and cancels."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from twisted.internet.defer import CancelledError

from cartd.archive import TlsPolicy
from cartd.errors import ConfigError
from tests.support.archive_client_fixture import (
    ClientFactory,
    Offers,
    Sink,
    asking,
    begun,
    failure_of,
)
from tests.support.archive_faults import endless, hang_after

pytest_plugins = ("tests.support.archive_fixtures",)

HOST = "127.0.0.1"
DATA = b"over TLS" * 10_000
PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2999, 1, 1, tzinfo=UTC)


def pem(path: Path, *authorities: trustme.CA) -> Path:
    """A file of roots as administrators write them, with words around the certificates."""
    blocks = [authority.cert_pem.bytes() for authority in authorities]
    path.write_bytes(b"# the roots of this site\n" + b"\nand\n".join(blocks))
    return path


@pytest_twisted.ensureDeferred
async def test_a_trusted_certificate_is_accepted(
    make_client: ClientFactory, tmp_path: Path
) -> None:
    authority = trustme.CA()
    roots = pem(tmp_path / "roots.pem", trustme.CA(), authority)
    async with asking(make_client, tls=Offers(authority.issue_cert(HOST)), ca_file=roots) as asked:
        asked.faulty.put("7", DATA)
        assert (await asked.archive.status("7")).size == len(DATA)
        await asked.archive.stage("7")
        assert await asked.fetch("7") == DATA
        assert asked.faulty.total_connections == 1


CASES = {
    "expired": "the archive's certificate has expired (127.0.0.1, valid until 2020-01-01)",
    "not-yet-valid": "the archive's certificate is not valid yet (127.0.0.1, valid from 2999-01-0",
    "other-host": "the archive's certificate is for another host than 127.0.0.1:"
    " it is for archive.example, *.lab.example, b.example, ...",
    "no-host": "the archive's certificate is for another host than 127.0.0.1: it names no host",
    "unknown-root": "the archive's certificate is signed by an unknown authority (127.0.0.1,"
    " issued by ",
    "system-roots-only": "the archive's certificate is signed by an unknown authority (127.0.0.1,",
    "missing-between": "the archive's certificate is signed by an unknown authority (127.0.0.1,",
    "root-in-chain": "the archive's certificate is signed by an unknown authority (127.0.0.1,",
    "self-signed": "the archive's certificate is self-signed (127.0.0.1): if that"
    " is right, archiveinterface.ca_file must name it",
}


def certificate_for(case: str, authority: trustme.CA) -> trustme.LeafCert:
    """The certificate of the archive."""
    match case:
        case "expired":
            return authority.issue_cert(HOST, not_before=PAST, not_after=PAST)
        case "not-yet-valid":
            return authority.issue_cert(HOST, not_before=FUTURE, not_after=FUTURE)
        case "other-host":
            names = ("archive.example", "*.lab.example", "10.0.0.1", "b.example")
            return authority.issue_cert(*names)
        case "no-host":
            return authority.issue_cert(common_name=HOST)
        case "missing-between":
            below = authority.create_child_ca().issue_cert(HOST)
            [own, *_] = below.cert_chain_pems
            return trustme.LeafCert(below.private_key_pem.bytes(), own.bytes(), [])
        case "root-in-chain":
            leaf = authority.issue_cert(HOST)
            [own] = leaf.cert_chain_pems
            chain = [authority.cert_pem.bytes()]
            return trustme.LeafCert(leaf.private_key_pem.bytes(), own.bytes(), chain)
        case "self-signed":
            itself = trustme.CA()
            return trustme.LeafCert(itself.private_key_pem.bytes(), itself.cert_pem.bytes(), [])
    return authority.issue_cert(HOST)


@pytest.mark.parametrize(("case", "message"), CASES.items(), ids=list(CASES))
@pytest_twisted.ensureDeferred
async def test_an_untrusted_certificate_is_rejected(
    make_client: ClientFactory, tmp_path: Path, case: str, message: str
) -> None:
    authority = trustme.CA()
    stranger = case in ("unknown-root", "root-in-chain")
    roots = pem(tmp_path / "roots.pem", trustme.CA() if stranger else authority)
    offered = Offers(certificate_for(case, authority))
    ca_file = None if case == "system-roots-only" else roots
    async with asking(make_client, tls=offered, ca_file=ca_file) as asked:
        error = await failure_of(asked.archive.status("7"))
        assert str(error).startswith(message)
        assert not error.retryable
        assert error.outage
        assert asked.faulty.requests == []
        await asked.until(lambda: asked.faulty.open_connections == 0)


@pytest.mark.parametrize("fault", [hang_after(100), endless()], ids=["silent", "endless"])
@pytest_twisted.ensureDeferred
async def test_cancelling_does_not_wait_for_a_tls_close_notify(
    make_client: ClientFactory, tmp_path: Path, fault: Any
) -> None:
    authority = trustme.CA()
    roots = pem(tmp_path / "roots.pem", authority)
    async with asking(make_client, tls=Offers(authority.issue_cert(HOST)), ca_file=roots) as asked:
        asked.faulty.put("7", DATA)
        asked.faulty.fault("7", fault)
        sink = Sink(lambda sink: sink.producer.pauseProducing())  # type: ignore[union-attr]
        fetching = begun(asked.archive.fetch("7", sink))
        await sink.first
        fetching.cancel()
        with pytest.raises(CancelledError):
            await fetching
        await asked.until(lambda: asked.faulty.open_connections == 0)
        assert await asked.fetch("7") == DATA


@pytest_twisted.ensureDeferred
async def test_a_peer_without_tls_is_reported_and_retryable(
    make_client: ClientFactory, tmp_path: Path
) -> None:
    roots = pem(tmp_path / "roots.pem", trustme.CA())
    async with asking(make_client, ca_file=roots, claimed="https") as asked:
        asked.faulty.put("7", DATA)
        error = await failure_of(asked.archive.status("7"))
        assert str(error) == (
            "the archive (127.0.0.1) does not speak TLS on this port: its url may have to begin"
            " with http:"
        )
        assert error.retryable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "contains no PEM certificate"),
        (
            b"-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n",
            "contains an invalid certificate",
        ),
    ],
    ids=["missing", "empty", "garbled"],
)
def test_an_invalid_ca_file_is_rejected_at_the_start(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"ca_file {path} {message}"):
        TlsPolicy(ca_file=path)

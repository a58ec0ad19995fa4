"""Certificates and keys in files: what is accepted, what is rejected, and reloading."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.internet.defer import Deferred, maybeDeferred

from cartd.archive import TlsPolicy
from cartd.certificates import Identity, PemFile, ReloadingCertificate, read_identity
from cartd.errors import ConfigError

AUTHORITY = trustme.CA()
BELOW = AUTHORITY.create_child_ca()
LEAF = BELOW.issue_cert("cartd.example")
OTHER = AUTHORITY.issue_cert("cartd.example")
KEY = LEAF.private_key_pem.bytes()
OWN, MIDDLE = (pem.bytes() for pem in LEAF.cert_chain_pems)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(directory: Path, certificate: bytes, key: bytes, chain: bytes | None = None) -> Identity:
    chain_file = None if chain is None else written(directory / "chain", chain)
    return read_identity(
        PemFile("certKey", written(directory / "cert", certificate)),
        PemFile("privateKey", written(directory / "key", key)),
        None if chain_file is None else PemFile("extraCertChain", chain_file),
    )


def pems(identity: Identity) -> list[bytes]:
    found = [identity.certificate, *identity.chain]
    return [one.to_cryptography().public_bytes(Encoding.PEM) for one in found]


def encoded(form: PrivateFormat, passphrase: bytes | None = None) -> bytes:
    """The key of ``LEAF`` as other tools write it."""
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return load_pem_private_key(KEY, None).private_bytes(Encoding.PEM, form, encryption)


@pytest.mark.parametrize(
    ("certificate", "key", "chain", "sent"),
    [
        (OWN, KEY, None, [OWN]),
        (OWN + MIDDLE, KEY, None, [OWN, MIDDLE]),
        (OWN, KEY, MIDDLE, [OWN, MIDDLE]),
        (KEY + b"words\n" + OWN, b"\n" + OWN + KEY, None, [OWN]),
        (OWN.replace(b"\n", b"\r\n"), encoded(PrivateFormat.PKCS8), None, [OWN]),
    ],
    ids=["own", "chain-behind-it", "chain-beside-it", "one-file", "other-forms"],
)
def test_certificate_key_and_chain_are_read(
    tmp_path: Path, certificate: bytes, key: bytes, chain: bytes | None, sent: list[bytes]
) -> None:
    assert pems(read(tmp_path, certificate, key, chain)) == sent


def too_weak() -> tuple[bytes, bytes]:
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
    ).sign(key, hashes.SHA256())
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        (b"", KEY, "certKey DIR/cert contains no PEM certificate"),
        (KEY, KEY, "certKey DIR/cert contains no PEM certificate"),
        (OWN[:-40], KEY, "certKey DIR/cert contains no PEM certificate"),
        (
            OWN[:60] + b"\n-----END CERTIFICATE-----\n",
            KEY,
            "certKey DIR/cert contains an invalid certificate",
        ),
        (OWN, OWN, "privateKey DIR/key contains no PEM private key"),
        (OWN, KEY[:-20], "privateKey DIR/key contains no PEM private key"),
        (
            OWN,
            KEY[:80] + KEY[100:],
            "privateKey DIR/key contains an invalid private key",
        ),
        (
            OWN,
            encoded(PrivateFormat.PKCS8, b"secret"),
            "privateKey DIR/key contains an encrypted key: passphrases are not supported",
        ),
        (
            OWN,
            encoded(PrivateFormat.TraditionalOpenSSL, b"secret"),
            "privateKey DIR/key contains an encrypted key: passphrases are not supported",
        ),
        (
            MIDDLE + OWN,
            KEY,
            "privateKey DIR/key does not match the first certificate in certKey DIR/cert",
        ),
        (*too_weak(), "certKey DIR/cert contains a certificate that is too weak"),
    ],
    ids=[
        *("empty", "only-a-key", "cut", "garbled", "no-key", "key-cut", "key-garbled"),
        *("passphrase", "old-passphrase", "wrong-order", "weak"),
    ],
)
def test_unusable_file_is_rejected_with_a_reason(
    tmp_path: Path, certificate: bytes, key: bytes, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, certificate, key)
    assert str(caught.value) == reason.replace("DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"key_file": KEY}, "key_file DIR/key_file needs a cert_file"),
        ({"cert_file": OWN}, "cert_file DIR/cert_file contains no PEM private key"),
        (
            {"cert_file": OWN, "key_file": OTHER.private_key_pem.bytes()},
            "key_file DIR/key_file does not match the first certificate in cert_file DIR/cert_file",
        ),
    ],
)
def test_unusable_client_certificate_names_its_setting(
    tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    paths = {name: written(tmp_path / name, content) for name, content in files.items()}
    with pytest.raises(ConfigError) as caught:
        TlsPolicy(**paths)
    assert str(caught.value) == reason.replace("DIR", str(tmp_path))


class Directly:
    """Replaces threads; counts the calls."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, work: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        self.runs += 1
        return maybeDeferred(work, *args, **kwargs)


class Watched:
    """A file, and the result of a parser that rejects ``bad``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text("first")
        self.made = 0
        self.threads = Directly()
        self.reloading = ReloadingCertificate("The thing", [path], self._make)

    async def poll(self) -> str:
        await self.reloading.poll(self.threads)
        return self.reloading.current

    def _make(self) -> str:
        self.made += 1
        try:
            content = self.path.read_text()
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}") from error
        if content == "bad":
            raise ConfigError("makes no sense")
        return content


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "file")


@pytest_twisted.ensureDeferred
async def test_reload_only_after_a_change(watched: Watched) -> None:
    assert await watched.poll() == "first"
    assert watched.made == 1
    watched.path.write_text("next one")
    assert await watched.poll() == "next one"
    assert await watched.poll() == "next one"
    assert watched.made == 2
    assert watched.threads.runs == 3


@pytest_twisted.ensureDeferred
async def test_replaced_file_of_same_size_and_date_is_reloaded(
    watched: Watched,
) -> None:
    beside = watched.path.with_name("beside")
    beside.write_text("other")
    found = watched.path.stat()
    os.utime(beside, ns=(found.st_atime_ns, found.st_mtime_ns))
    beside.rename(watched.path)
    assert await watched.poll() == "other"


@pytest_twisted.ensureDeferred
async def test_failed_reload_keeps_the_old_certificate(watched: Watched) -> None:
    for spoil, reason in (
        (lambda: watched.path.write_text("bad"), "makes no sense"),
        (watched.path.unlink, "cannot be read: No such file or directory"),
    ):
        spoil()
        for _ in range(2):
            with pytest.raises(ConfigError) as caught:
                await watched.poll()
            assert str(caught.value) == (
                f"The thing not reloaded, the previous one stays in use: {reason}"
            )
            assert watched.reloading.current == "first"
    watched.path.write_text("good again")
    assert await watched.poll() == "good again"

"""Certificates and keys in PEM files (RFC 7468).

All functions block.  Text between the PEM blocks is ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_PEM, X509, PKey, load_certificate, load_privatekey
from OpenSSL.crypto import Error as CryptoError

from cartd.errors import ConfigError

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)


class PemFile(NamedTuple):
    """A file, and the name of its setting, for error messages."""

    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key, its certificate, and the chain between that and a root."""

    key: PKey
    certificate: X509
    chain: tuple[X509, ...]


def read_identity(certificate: PemFile, key: PemFile, chain: PemFile | None = None) -> Identity:
    """Return a certificate with its key; both may be in one file.

    The first certificate in ``certificate`` belongs to the key; the others there, and those in
    ``chain``, form the chain.  Raises :class:`ConfigError` if a file is unusable or the key does
    not match.
    """
    own, *above = certificates(certificate)
    if chain is not None:
        above += certificates(chain)
    identity = Identity(_private_key(key), own, tuple(above))
    private: Any = identity.key.to_cryptography_key()
    context = SSL.Context(SSL.TLS_METHOD)
    try:
        context.use_certificate(identity.certificate.to_cryptography())
    except SSL.Error as error:
        raise ConfigError(f"{certificate} contains a certificate that is too weak") from error
    try:
        context.use_privatekey(private)
        context.check_privatekey()
    except SSL.Error as error:
        message = f"{key} does not match the first certificate in {certificate}"
        raise ConfigError(message) from error
    return identity


def certificates(file: PemFile) -> list[X509]:
    """Return all certificates of a file; raise :class:`ConfigError` if there is none."""
    blocks = _CERTIFICATE.findall(_content(file))
    if not blocks:
        raise ConfigError(f"{file} contains no PEM certificate")
    try:
        return [load_certificate(FILETYPE_PEM, block) for block in blocks]
    except (CryptoError, ValueError) as error:
        raise ConfigError(f"{file} contains an invalid certificate") from error


def _private_key(file: PemFile) -> PKey:
    block = _KEY.search(_content(file))
    if block is None:
        raise ConfigError(f"{file} contains no PEM private key")
    if b"ENCRYPTED" in block[0]:
        raise ConfigError(f"{file} contains an encrypted key: passphrases are not supported")
    try:
        return load_privatekey(FILETYPE_PEM, block[0], passphrase=b"")
    except (CryptoError, ValueError) as error:
        raise ConfigError(f"{file} contains an invalid private key") from error


def _content(file: PemFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error

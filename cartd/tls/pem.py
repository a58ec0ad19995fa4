"""Certificates and keys out of PEM files (RFC 7468), or one sentence that says what is wrong.

Everything here blocks.  Words between the blocks are read past, as administrators write them.
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
    """A file, and the name of what it was given as, for whoever must mend it."""

    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who one is, and the certificates between that and a root."""

    key: PKey
    certificate: X509
    chain: tuple[X509, ...]


def read_identity(certificate: PemFile, key: PemFile, chain: PemFile | None = None) -> Identity:
    """A certificate with its key, which may be in one file.

    The first one in ``certificate`` is one's own; those behind it, and those in ``chain``, are sent
    with it.  Raises :class:`ConfigError` if a file cannot be used or the two do not match.
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
        raise ConfigError(f"{certificate} holds a certificate that is too weak to use") from error
    try:
        context.use_privatekey(private)
        context.check_privatekey()
    except SSL.Error as error:
        message = f"{key} holds a key that is not that of the first certificate in {certificate}"
        raise ConfigError(message) from error
    return identity


def certificates(file: PemFile) -> list[X509]:
    """All certificates of a file, at least one; raises :class:`ConfigError`."""
    blocks = _CERTIFICATE.findall(_content(file))
    if not blocks:
        raise ConfigError(f"{file} holds no certificate in PEM form")
    try:
        return [load_certificate(FILETYPE_PEM, block) for block in blocks]
    except (CryptoError, ValueError) as error:
        raise ConfigError(f"{file} holds a certificate that cannot be read") from error


def _private_key(file: PemFile) -> PKey:
    block = _KEY.search(_content(file))
    if block is None:
        raise ConfigError(f"{file} holds no private key in PEM form")
    if b"ENCRYPTED" in block[0]:
        raise ConfigError(f"{file} holds a key with a passphrase, for which nobody can be asked")
    try:
        return load_privatekey(FILETYPE_PEM, block[0], passphrase=b"")
    except (CryptoError, ValueError) as error:
        raise ConfigError(f"{file} holds a private key that cannot be read") from error


def _content(file: PemFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error

"""Certificates and keys in PEM files (RFC 7468), for clients and the archive; their reloading.

All functions block, except for :meth:`ReloadingCertificate.poll`.  Text between the PEM blocks is
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_PEM, X509, PKey, load_certificate, load_privatekey
from OpenSSL.crypto import Error as CryptoError
from twisted.logger import Logger

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError

T = TypeVar("T")

log = Logger()

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
    own, *above = read_certificates(certificate)
    if chain is not None:
        above += read_certificates(chain)
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


def read_certificates(file: PemFile) -> list[X509]:
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


RELOAD_INTERVAL = 2.0
"""Seconds between two polls of the files, which only read their metadata."""


class ReloadingCertificate(Generic[T]):
    """Holds the result of ``make``, which reads ``files``, as ``current``; :meth:`poll` reloads it.

    The constructor calls ``make`` at once, and raises its :class:`ConfigError` if a file is
    unusable.  Later calls are made in a thread.
    """

    def __init__(self, name: str, files: Sequence[Path], make: Callable[[], T]) -> None:
        """``name`` is for the log, such as ``The certificate of ssl:443``."""
        self._files = tuple(files)
        self._name = name
        self._make = make
        self._loaded_state = self._file_states()
        self.current = make()

    async def poll(self, threads: ThreadRunner) -> None:
        """Reload if a file has changed since the last reload.

        Raises :class:`ConfigError`, and keeps ``current``, if the files are unusable, which may be
        because they are only partly written.  The next poll retries.
        """
        try:
            found = await threads.run(self._reload_if_changed)
        except ConfigError as error:
            raise ConfigError(
                f"{self._name} not reloaded, the previous one stays in use: {error}"
            ) from error
        if found is not None:
            self._loaded_state, self.current = found
            log.info("{name} reloaded", name=self._name)

    def _reload_if_changed(self) -> tuple[object, T] | None:
        # The state first: changes made while reading are detected by the next poll.
        state = self._file_states()
        return None if state == self._loaded_state else (state, self._make())

    def _file_states(self) -> object:
        return [_file_state(file) for file in self._files]


def _file_state(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        return error.errno  # make reports it
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

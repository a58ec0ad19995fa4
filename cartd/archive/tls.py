"""TLS to the archive: trusted roots and the client certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from cartd.archive.certificates import CertificateRejected, is_address, rejection_reason
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError
from cartd.tls import PemFile, ReloadingCertificate, certificates, read_identity


@implementer(IPolicyForHTTPS)
class TlsPolicy:
    """Verify ``https:`` against the system's roots, or against those in ``ca_file`` alone.

    ``cert_file`` is the client certificate, for an archive that requests one; its key is in
    ``key_file``, or else in the same file.  All are PEM, read here, which blocks, and reloaded when
    they have changed.  Raises :class:`ConfigError` if one of them cannot be used.
    """

    def __init__(
        self,
        *,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        if key_file is not None and cert_file is None:
            raise ConfigError(f"key_file {key_file} needs a cert_file")
        self._ca_file = _pem_file("ca_file", ca_file)
        self._cert_file = _pem_file("cert_file", cert_file)
        self._key_file = _pem_file("key_file", key_file) or self._cert_file
        given = (self._ca_file, self._cert_file, self._key_file)
        self.files = tuple({file.path for file in given if file is not None})
        """The files that :meth:`poll` checks."""
        self._options = ReloadingCertificate(
            "The TLS configuration for the archive", self.files, self._make
        )

    async def poll(self, threads: ThreadRunner) -> None:
        """As :meth:`ReloadingCertificate.poll`; existing connections are not affected."""
        await self._options.poll(threads)

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        return _ConnectionCreator(lambda: self._options.current, hostname.decode("ascii"))

    def _make(self) -> CertificateOptions:
        own: dict[str, Any] = {}
        if self._cert_file is not None and self._key_file is not None:
            identity = read_identity(self._cert_file, self._key_file)
            own = {
                "privateKey": identity.key,
                "certificate": identity.certificate,
                "extraCertChain": list(identity.chain),
            }
        options = CertificateOptions(
            trustRoot=self._roots(), raiseMinimumTo=TLSVersion.TLSv1_2, **own
        )
        if self.files:
            # Not later, when a connection begins.  Without files this is skipped: loading the
            # system's roots takes some time, and most archives need none.
            options.getContext()
        return options

    def _roots(self) -> Any:
        if self._ca_file is None:
            return platformTrust()
        return trustRootFromCertificates(
            [Certificate(root) for root in certificates(self._ca_file)]
        )


def _pem_file(name: str, path: Path | None) -> PemFile | None:
    return None if path is None else PemFile(name, path)


@implementer(IOpenSSLClientConnectionCreator)
class _ConnectionCreator:
    """Creates TLS connections to one host."""

    def __init__(self, options: Callable[[], CertificateOptions], host: str) -> None:
        self._options = options
        self._host = host

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        connection = self._options().clientConnectionForTLS(protocol)
        if not is_address(self._host):
            # SNI has no addresses (RFC 6066, section 3).
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        connection.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT,
            _verify_callback(self._host, protocol),
        )
        return connection


def _verify_callback(host: str, protocol: Any) -> Callable[..., bool]:
    """Return OpenSSL's callback for each certificate, from the root down, and each error."""
    waiting = [protocol]  # until the result; else the two would keep each other alive

    def verify(_: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
        if ok and depth:
            return True
        reason = rejection_reason(host, certificate.to_cryptography(), depth, 0 if ok else error)
        pending = waiting.pop() if waiting else None
        if reason is not None and pending is not None:
            pending.failVerification(Failure(CertificateRejected(reason)))
        return reason is None

    return verify

"""TLS to the archive: trusted roots, the client certificate, and why a certificate is rejected.

The archive's certificate is accepted by OpenSSL's result and its host name.  Revocation is not
checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.SSL import X509VerificationCodes as Codes
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import (
    DNS_ID,
    DNSPattern,
    IPAddress_ID,
    IPAddressPattern,
    verify_service_identity,
)
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

from cartd.certificates import PemFile, ReloadingCertificate, read_certificates, read_identity
from cartd.deferreds.threads import ThreadRunner
from cartd.errors import ConfigError, one_line


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
            [Certificate(root) for root in read_certificates(self._ca_file)]
        )


def _pem_file(name: str, path: Path | None) -> PemFile | None:
    return None if path is None else PemFile(name, path)


@implementer(IOpenSSLClientConnectionCreator)
class _ConnectionCreator:
    """Creates TLS connections to one host; each reports why its certificate is rejected.

    Twisted's ``optionsForClientTLS`` matches names with the same library, but cannot replace this:
    it accepts a certificate that names no host for every host (its callback ignores
    ``CertificateError``), and it reports neither OpenSSL's error code nor the certificate.
    """

    def __init__(self, options: Callable[[], CertificateOptions], host: str) -> None:
        self._options = options
        self._host = host
        self._service_id = _service_id(host)

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        weak = ref(protocol)  # pyOpenSSL keeps the callback until the next garbage collection

        def verify(_: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
            """Accept or reject each certificate, from the root down, and each error."""
            if ok and depth:
                return True
            error = 0 if ok else error
            reason = rejection_reason(self._host, certificate.to_cryptography(), depth, error)
            if reason is not None and (connecting := weak()) is not None:
                connecting.failVerification(Failure(CertificateRejected(reason)))
            return reason is None

        connection = self._options().clientConnectionForTLS(protocol)
        if isinstance(self._service_id, DNS_ID):
            # SNI has no addresses and no trailing dot (RFC 6066, section 3).
            connection.set_tlsext_host_name(self._service_id.hostname)
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


_SETTING = "archiveinterface.ca_file"

_UNKNOWN_ISSUER = frozenset(
    {
        Codes.ERR_UNABLE_TO_GET_ISSUER_CERT,
        Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
        Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
        Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN,
    }
)
_MAX_NAMES = 3


class CertificateRejected(Exception):
    """The archive's certificate is rejected; ``str`` is the reason in one sentence."""


def rejection_reason(
    host: str, certificate: x509.Certificate, depth: int, error: int
) -> str | None:
    """Return why the ``certificate`` of ``host`` is rejected; None if it is accepted.

    ``host`` is a name in ASCII (with A-labels, RFC 5890) or an address.  ``error`` is OpenSSL's
    error code, 0 for none, and ``depth`` the number of certificates from the archive's own up to
    this one.
    """
    if error:
        return _openssl_reason(host, certificate, depth, error)
    if _matches_host(host, certificate):
        return None
    names = _names(certificate)
    meant = f"it is for {', '.join(names)}" if names else "it names no host"
    return f"the archive's certificate is for another host than {host}: {meant}"


def _openssl_reason(host: str, certificate: x509.Certificate, depth: int, error: int) -> str:
    whose = "certificate" if depth == 0 else "authority's certificate"
    if error == Codes.ERR_CERT_HAS_EXPIRED:
        until = certificate.not_valid_after_utc.date()
        return f"the archive's {whose} has expired ({host}, valid until {until})"
    if error == Codes.ERR_CERT_NOT_YET_VALID:
        since = certificate.not_valid_before_utc.date()
        return f"the archive's {whose} is not valid yet ({host}, valid from {since})"
    if error == Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return (
            f"the archive's certificate is self-signed ({host}): if that is right,"
            f" {_SETTING} must name it"
        )
    if error in _UNKNOWN_ISSUER:
        issuer = one_line(certificate.issuer.rfc4514_string(), 80)
        return (
            f"the archive's certificate is signed by an unknown authority ({host}, issued by"
            f" {issuer}): {_SETTING} does not contain it, or the archive sends no intermediate"
            " certificates"
        )
    if error == Codes.ERR_INVALID_PURPOSE:
        return f"the archive's {whose} is not meant for a server ({host})"
    return f"the archive's {whose} is not valid ({host}, OpenSSL's error {error})"


def _matches_host(host: str, certificate: x509.Certificate) -> bool:
    try:
        verify_service_identity(extract_patterns(certificate), [_service_id(host)], [])
    except (VerificationError, CertificateError):
        return False
    return True


def _service_id(host: str) -> DNS_ID | IPAddress_ID:
    try:
        return IPAddress_ID(host)
    except ValueError:
        return DNS_ID(host.rstrip("."))


def _names(certificate: x509.Certificate) -> Sequence[str]:
    """Return the first hosts that it is for."""
    try:
        patterns = extract_patterns(certificate)
    except CertificateError:
        return []
    names = [
        pattern.pattern.decode("ascii", "replace")
        if isinstance(pattern, DNSPattern)
        else str(pattern.pattern)
        for pattern in patterns
        if isinstance(pattern, DNSPattern | IPAddressPattern)
    ]
    shown = [one_line(name, 80) for name in names[:_MAX_NAMES]]
    return [*shown, "..."] if len(names) > _MAX_NAMES else shown

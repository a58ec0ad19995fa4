"""Verification of the archive's certificate: OpenSSL's result and the host name, with the reason.

Revocation is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from cryptography import x509
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

from cartd.text import one_line

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


def is_address(host: str) -> bool:
    """Whether it is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


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
    wanted = IPAddress_ID(host) if is_address(host) else DNS_ID(host.rstrip("."))
    try:
        verify_service_identity(extract_patterns(certificate), [wanted], [])
    except (VerificationError, CertificateError):
        return False
    return True


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

"""Verification of certificates: host names, and reasons for a rejection."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trustme
from cryptography import x509
from OpenSSL.SSL import X509VerificationCodes as Codes

from cartd.archive.tls import rejection_reason

AUTHORITY = trustme.CA()


def certificate(*names: str) -> x509.Certificate:
    [own, *_] = AUTHORITY.issue_cert(*names).cert_chain_pems
    return x509.load_pem_x509_certificate(own.bytes())


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("archive.example", ["other.example", "archive.example"]),
        ("ARCHIVE.example.", ["archive.example"]),
        ("archive.lab.example", ["*.lab.example"]),
        ("xn--bcher-kva.example", ["b\u00fccher.example"]),
        ("10.0.0.1", ["10.0.0.1"]),
        ("2001:db8::1", ["2001:0db8:0::1"]),
    ],
)
def test_a_certificate_is_for_the_hosts_that_it_names(host: str, names: Sequence[str]) -> None:
    assert rejection_reason(host, certificate(*names), 0, 0) is None


@pytest.mark.parametrize(
    ("host", "names", "meant"),
    [
        ("example", ["archive.example"], "archive.example"),
        ("a.b.lab.example", ["*.lab.example"], "*.lab.example"),
        ("lab.example", ["*.lab.example"], "*.lab.example"),
        ("bucher.example", ["b\u00fccher.example"], "xn--bcher-kva.example"),
        ("10.0.0.2", ["10.0.0.1", "a.example"], "a.example, 10.0.0.1"),
        ("2001:db8::2", ["2001:db8::1"], "2001:db8::1"),
    ],
)
def test_and_for_no_other(host: str, names: Sequence[str], meant: str) -> None:
    reason = rejection_reason(host, certificate(*names), 0, 0)
    assert reason == (
        f"the archive's certificate is for another host than {host}: it is for {meant}"
    )


@pytest.mark.parametrize(
    ("depth", "error", "reason"),
    [
        (1, Codes.ERR_CERT_HAS_EXPIRED, "the archive's authority's certificate has expired (a.b, "),
        (1, Codes.ERR_CERT_NOT_YET_VALID, "the archive's authority's certificate is not valid yet"),
        (0, Codes.ERR_INVALID_PURPOSE, "the archive's certificate is not meant for a server (a.b)"),
        (2, Codes.ERR_INVALID_CA, "the archive's authority's certificate is not valid (a.b, "),
    ],
)
def test_what_openssl_finds_is_said_in_words(depth: int, error: int, reason: str) -> None:
    said = rejection_reason("a.b", certificate("a.b"), depth, error)
    assert said is not None
    assert said.startswith(reason)


@pytest.mark.parametrize("names", [[], ["archive.example", "*.example"]], ids=["none", "invalid"])
def test_a_certificate_without_valid_names_is_rejected(names: Sequence[str]) -> None:
    [own, *_] = AUTHORITY.issue_cert(*names, common_name="archive.example").cert_chain_pems
    unnamed = x509.load_pem_x509_certificate(own.bytes())
    assert rejection_reason("archive.example", unnamed, 0, 0) == (
        "the archive's certificate is for another host than archive.example: it names no host"
    )

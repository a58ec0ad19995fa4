"""The syntax of an ``ssl:`` endpoint: as in Twisted, and rejected with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cartd.config import TlsEndpoint, parse_tls_endpoint
from cartd.config.parsers import endpoint

PLAIN: dict[str, Any] = {
    "port": 443,
    "private_key": Path("server.pem"),
    "certificate": Path("server.pem"),
    "chain": None,
    "dh_parameters": None,
    "interface": "",
    "backlog": 50,
    "only_1_2": False,
}
KEY = {"private_key": Path("/k.pem"), "certificate": Path("/k.pem")}


@pytest.mark.parametrize(
    ("description", "more"),
    [
        ("ssl:443", {}),
        ("ssl:port=443", {}),
        ("ssl:443:privateKey=/k.pem", KEY),
        ("ssl:privateKey=/k.pem:443", KEY),
        ("ssl:443:privateKey=/k.pem:certKey=c.pem", {**KEY, "certificate": Path("c.pem")}),
        ("ssl:443:/k.pem:c.pem:TLS_METHOD:127.0.0.1:7", {
            **KEY, "certificate": Path("c.pem"), "interface": "127.0.0.1", "backlog": 7}),
        (r"ssl:443:interface=\:\:1", {"interface": "::1"}),
        (r"ssl:443:privateKey=/a\:b\=c\\d", {
            "private_key": Path("/a:b=c\\d"), "certificate": Path("/a:b=c\\d")}),
        ("ssl:443:privateKey=/a=b", {
            "private_key": Path("/a=b"), "certificate": Path("/a=b")}),
        ("ssl:443:extraCertChain=ch:dhParameters=dh:backlog=9:sslmethod=TLSv1_2_METHOD", {
            "chain": Path("ch"), "dh_parameters": Path("dh"), "backlog": 9, "only_1_2": True}),
        ("ssl:443:sslmethod=SSLv23_METHOD", {}),
    ],
)  # fmt: skip
def test_endpoint_options_of_twisted_are_parsed(description: str, more: dict[str, Any]) -> None:
    assert parse_tls_endpoint(description) == TlsEndpoint(**{**PLAIN, **more})
    assert endpoint(description) == description


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("ssl:", "port '' is not a whole number from 0 to 65535"),
        ("ssl:privateKey=k", "it has no port"),
        ("ssl:https", "port 'https' is not a whole number from 0 to 65535"),
        ("ssl:65536", "port '65536' is not a whole number from 0 to 65535"),
        ("ssl:443:certkey=c", "certkey is none of its arguments (port, privateKey, certKey,"),
        ("ssl:443:port=1", "port is given twice"),
        ("ssl:443:backlog=many", "backlog 'many' is not a whole number"),
        ("ssl:443:privateKey=", "privateKey names no file"),
        ("ssl:443:extraCertChain=", "extraCertChain names no file"),
        ("ssl:443:sslmethod=TLSv1_METHOD", "sslmethod TLSv1_METHOD is not TLS_METHOD"),
        ("ssl:443:privateKey=k\\", "it ends in a backslash"),
        ("ssl:1:k:c:TLS_METHOD::5:ch:dh:more", "more is none of its arguments"),
    ],
)
def test_invalid_endpoint_string_is_rejected_with_a_reason(description: str, reason: str) -> None:
    with pytest.raises(ValueError, match="is not an endpoint") as caught:
        endpoint(description)
    assert reason in str(caught.value)

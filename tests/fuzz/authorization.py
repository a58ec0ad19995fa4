"""The Authorization header: a name and a secret, both unchanged, or a failed login.

An input is the header's value.
"""

from __future__ import annotations

from base64 import b64encode

from twisted.cred.error import LoginFailed

from cartd.auth.authenticator import Credentials, parse_authorization
from cartd.auth.tokens import NAME

WORDS = (
    b"Bearer ", b"Basic ", b"bearer", b"BASIC", b"Digest ", b"ada.secret", b"YWRhOmFkYS5zZWNyZXQ=",
    b"cartd_", b"cartd_ada.secret", b".", b":", b"=", b"==", b" ", b"\t", b"\0", b"\n", b"\xc3\xa4",
    b"\xff", b"Og==", b",", b'"',
)  # fmt: skip


def check(data: bytes) -> None:
    scheme, _, rest = data.strip().partition(b" ")
    try:
        token = parse_authorization(data)
    except LoginFailed:
        assert scheme.lower() != b"bearer" or b"." not in rest.removeprefix(b"cartd_"), data
        return
    assert repr(token) == f"Credentials(name={token.name!r})"
    if scheme.lower() == b"bearer":
        assert token.secret == rest.strip()
        _check_name(token, token.secret.removeprefix(b"cartd_").rpartition(b".")[0])
    else:
        assert scheme.lower() == b"basic", data
        name = token.name.encode()
        _check_name(token, name)
        assert parse_authorization(b"Basic " + b64encode(name + b":" + token.secret)) == token


def _check_name(token: Credentials, sent: bytes) -> None:
    """A name that was not sent must not be returned."""
    assert token.name.encode() == sent or not NAME.fullmatch(token.name), token

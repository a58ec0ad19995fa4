"""Tokens: how one is made, what is kept of it, and how a token is compared with that.

A token is ``cartd_NAME.SECRET``.  The secret is 256 random bits, so it can neither be guessed nor
found from its SHA-256, and nothing needs to make a comparison slow or rare.  The prefix is for
programs that look for secrets in what people publish.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

PREFIX = "cartd_"
SECRET_SIZE = 32
"""Random bytes in a token."""

_TOKEN = re.compile(rb"cartd_[\x21-\x7e]+\.[A-Za-z0-9_-]{43}")
_SECRET = re.compile(r"(?<=\.)[A-Za-z0-9_-]{32,}")
"""Of a token that was cut or has grown where it was copied, too."""
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


def new_token(name: str) -> str:
    """A token for ``name``; the name in it tells the log whose token failed."""
    return f"{PREFIX}{name}.{secrets.token_urlsafe(SECRET_SIZE)}"


def token_name(token: bytes) -> bytes | None:
    """The name that a token holds; none if it holds none."""
    name, dot, _ = token.removeprefix(PREFIX.encode()).rpartition(b".")
    return name if dot else None


def redact_secret(name: str) -> str:
    """What a client gives for a name, without the secret of a token that it may hold.

    Some send their token as the name, with an empty password, or with something behind it.
    """
    return _SECRET.sub("...", name)


@dataclass(frozen=True, slots=True)
class TokenHash:
    """SHA-256 of a token; as text ``sha256:`` and 64 hexadecimal digits."""

    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, token: bytes) -> TokenHash:
        return cls(hashlib.sha256(token).digest())

    @classmethod
    def parse(cls, text: str) -> TokenHash:
        """Raises ValueError with a reason that does not show the hash."""
        match = _HASH.fullmatch(text)
        if match is None:
            raise ValueError("the hash is not sha256: and 64 hexadecimal digits in lower case")
        return cls(bytes.fromhex(match[1]))

    def __str__(self) -> str:
        return f"sha256:{self.digest.hex()}"

    def matches(self, token: bytes) -> bool:
        """Whether this is the hash of ``token``; takes as long for every wrong one of its length.

        A password that somebody has chosen, and whose hash was written into the file by hand,
        matches nothing: it could be guessed.
        """
        digest = hashlib.sha256(token).digest()
        return hmac.compare_digest(digest, self.digest) and _TOKEN.fullmatch(token) is not None


DUMMY_HASH = TokenHash(bytes(32))
"""What the token of an unknown name is compared with: the time does not tell who is known."""

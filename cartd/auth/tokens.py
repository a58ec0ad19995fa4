"""Tokens: creation, hash, and comparison with the hash.

A token is ``cartd_NAME.SECRET``.  The secret is 256 random bits, so it can neither be guessed nor
derived from its SHA-256; a slow hash or a rate limit is not needed.  The prefix is for secret
scanners.
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
"""Also matches a token that was truncated or extended when it was copied."""
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


def new_token(name: str) -> str:
    """Return a new token for ``name``; the name in it shows in the log whose token failed."""
    return f"{PREFIX}{name}.{secrets.token_urlsafe(SECRET_SIZE)}"


def token_name(token: bytes) -> bytes | None:
    """Return the name in a token, or None."""
    name, dot, _ = token.removeprefix(PREFIX.encode()).rpartition(b".")
    return name if dot else None


def redact_secret(name: str) -> str:
    """Return the name sent by a client, without the secret of a token that it may contain.

    Some clients send the token as the name, with an empty password or with a suffix.
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
        """Parse a hash; raise ValueError with a reason that does not show it."""
        match = _HASH.fullmatch(text)
        if match is None:
            raise ValueError("the hash must be sha256: and 64 lower-case hexadecimal digits")
        return cls(bytes.fromhex(match[1]))

    def __str__(self) -> str:
        return f"sha256:{self.digest.hex()}"

    def matches(self, token: bytes) -> bool:
        """Return whether this is the hash of ``token``, in constant time for tokens of one length.

        Only generated tokens match: a password chosen by a person, with its hash written into the
        file by hand, could be guessed.
        """
        digest = hashlib.sha256(token).digest()
        return hmac.compare_digest(digest, self.digest) and _TOKEN.fullmatch(token) is not None


DUMMY_HASH = TokenHash(bytes(32))
"""Compared with the token of an unknown name, so that timing does not reveal known names."""

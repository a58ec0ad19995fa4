"""Tokens and their hashes, and the entries of the token file.  Pure.

A token is ``cartd_NAME.SECRET``.  The secret is 256 random bits, so it can neither be guessed nor
derived from its SHA-256; a slow hash or a rate limit is not needed.  The prefix is for secret
scanners.

The token file has one user of the service per line::

    # Comments and empty lines are ignored.
    alice  admin  sha256:HASH
    bob    user   sha256:HASH
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cartd.model import User

PREFIX = "cartd_"
SECRET_SIZE = 32
"""Random bytes in a token."""
ROLES = {"user": False, "admin": True}
NAME = re.compile(r"[A-Za-z0-9_~][A-Za-z0-9._~@-]{0,254}")
"""The syntax of a uid, and ``@``: many sites use e-mail addresses as user names."""

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


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: a name, its role, and the hash of its token."""

    user: User
    hash: TokenHash

    def __str__(self) -> str:
        return f"{self.user.name} {'admin' if self.user.admin else 'user'} {self.hash}"


def check_name(name: str) -> str:
    """Return ``name``; raise ValueError with the rule that it breaks."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "a name has 1 to 255 characters of A-Z a-z 0-9 . _ ~ @ - and does not begin with . @ -"
        )
    return name


def parse_entries(text: str) -> Mapping[str, Entry]:
    """Return the entries by name.  Raises ValueError with the line number and the reason."""
    entries: dict[str, Entry] = {}
    for number, line in _lines(text):
        try:
            entry = _entry(line)
            if entry.user.name in entries:
                raise ValueError(f"{entry.user.name} occurs twice")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        entries[entry.user.name] = entry
    return entries


def line_name(line: str) -> str | None:
    """Return the name in a line, or None for a comment or an empty line."""
    stripped = line.strip()
    return None if not stripped or stripped.startswith("#") else stripped.split()[0]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line_name(line) is not None:
            yield number, line


def _entry(line: str) -> Entry:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError("must be NAME ROLE HASH")
    name, role, kept = parts
    if role not in ROLES:
        raise ValueError("the role must be user or admin")
    return Entry(User(check_name(name), ROLES[role]), TokenHash.parse(kept))

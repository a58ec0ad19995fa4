"""What is kept of a secret: a hash that is slow to compute, and says how it was computed."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field

LOG_N, R, P = 14, 8, 1
"""The cost of a new hash (RFC 7914, section 2): 16 MiB, and some 50 ms of a processor."""
MOST_MEMORY = 64 * 2**20
"""Bytes that one check may take; a file that asks for more is refused."""
MOST_P = 16
SALT_SIZE, KEY_SIZE = 16, 32

_FORM = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,3}),p=([0-9]{1,2})"
    r"\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})"
)


@dataclass(frozen=True, slots=True)
class SecretHash:
    """scrypt's parameters, a salt, and the key that it made of the secret.

    As text it is ``$scrypt$ln=14,r=8,p=1$SALT$KEY``, in base64 without ``=``: the form that
    Python's passlib and others write, too.
    """

    log_n: int
    r: int
    p: int
    salt: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes, salt: bytes) -> SecretHash:
        """Hash a new secret; takes as long as a check."""
        return cls(LOG_N, R, P, salt, _scrypt(secret, salt, LOG_N, R, P, KEY_SIZE))

    @classmethod
    def parse(cls, text: str) -> SecretHash:
        """Raises ValueError with a reason that does not show the hash."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("the hash is not $scrypt$ln=N,r=N,p=N$SALT$KEY")
        log_n, r, p = (int(number) for number in match.groups()[:3])
        if not (log_n and r and 0 < p <= MOST_P) or _memory(log_n, r, p) > MOST_MEMORY:
            raise ValueError("the hash takes more than 64 MiB to check, or its numbers are wrong")
        return cls(log_n, r, p, _decoded(match[4]), _decoded(match[5]))

    def __str__(self) -> str:
        salt, key = (b64encode(part).decode().rstrip("=") for part in (self.salt, self.key))
        return f"$scrypt$ln={self.log_n},r={self.r},p={self.p}${salt}${key}"

    def matches(self, secret: bytes) -> bool:
        """Blocks for some 50 ms, without the interpreter's lock."""
        key = _scrypt(secret, self.salt, self.log_n, self.r, self.p, len(self.key))
        return hmac.compare_digest(key, self.key)


NOBODYS = SecretHash(LOG_N, R, P, bytes(SALT_SIZE), bytes(KEY_SIZE))
"""What the secret of an unknown name is compared with, so that it costs as much as a wrong one."""


def _memory(log_n: int, r: int, p: int) -> int:
    return int(128 * r * (2**log_n + p + 2))


def _scrypt(secret: bytes, salt: bytes, log_n: int, r: int, p: int, size: int) -> bytes:
    most = MOST_MEMORY + 2**20
    return hashlib.scrypt(secret, salt=salt, n=2**log_n, r=r, p=p, maxmem=most, dklen=size)


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("the hash is not in base64") from None

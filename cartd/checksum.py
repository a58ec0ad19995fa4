"""Counting and hashing a stream of bytes against what was declared of it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from cartd.errors import CartdError


class Mismatch(CartdError):
    """The bytes are not those that were declared: too many, too few, or of another hash."""


class Checksum:
    """Takes the bytes of one file as they come; holds none of them.

    ``size`` is the declared number of bytes.  ``hash_sum`` is hex in either case; empty means
    that nobody knows it: then any bytes of the right number are right, and :meth:`finish` tells
    the hash.  An unusable ``hash_type`` raises ``ValueError``, as :func:`digest_size` does.
    """

    def __init__(self, hash_type: str, hash_sum: str, size: int) -> None:
        digest_size(hash_type)
        self._hash_type = hash_type
        self._declared = hash_sum.lower()
        self._size = size
        self._seen = 0
        self._hash = _new(hash_type)

    def update(self, data: bytes) -> None:
        """Count and hash ``data``; raises :class:`Mismatch` at the first byte too many."""
        self._seen += len(data)
        if self._seen > self._size:
            raise Mismatch(f"it has more than the {self._size} bytes that were declared")
        self._hash.update(data)

    def finish(self) -> str:
        """Lower-case hex of the hash; raises :class:`Mismatch` if anything is not as declared."""
        if self._seen != self._size:
            raise Mismatch(f"it has {self._seen} bytes where {self._size} were declared")
        computed: str = self._hash.hexdigest()
        if self._declared and computed != self._declared:
            raise Mismatch(
                f"its {self._hash_type} is {computed} where {self._declared} was declared"
            )
        return computed


@lru_cache(maxsize=64)
def digest_size(hash_type: str) -> int:
    """Length in bytes of the digests of ``hash_type``, any name that ``hashlib.new`` takes.

    Raises ``ValueError`` for a name that this Python cannot compute, and for the hashes whose
    length the caller would have to choose (SHAKE, FIPS 202 section 6.2).
    """
    shown = repr(hash_type[:40])
    try:
        computing = _new(hash_type)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shown} is not a hash that this Python can compute") from error
    try:
        size = len(computing.digest())
    except TypeError:
        size = 0
    if size == 0:
        raise ValueError(f"{shown} has no fixed length")
    return size


def _new(hash_type: str) -> Any:
    # The hash finds damage, it guards no secret: so MD5 may be used where FIPS mode forbids it.
    return hashlib.new(hash_type, usedforsecurity=False)

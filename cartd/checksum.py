"""Verification of a stream of bytes against its declared size and hash."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from cartd.errors import CartdError, Problem


class Mismatch(CartdError):
    """The bytes differ from the declaration: too many, too few, or another hash."""


class SizeMismatch(Mismatch):
    problem = Problem.SIZE_MISMATCH


class HashMismatch(Mismatch):
    problem = Problem.HASH_MISMATCH


class Checksum:
    """Hashes and counts the bytes of one file as they arrive; stores none of them.

    ``size`` is the declared number of bytes.  ``hash_sum`` is hex in either case; if it is empty,
    only the size is verified, and :meth:`finish` returns the computed hash.  A second hash of
    ``also_type`` is computed of the same bytes, and compared with nothing.  An unusable type raises
    ``ValueError``, as :func:`digest_size` does.
    """

    def __init__(
        self, hash_type: str, hash_sum: str, size: int, also_type: str | None = None
    ) -> None:
        digest_size(hash_type)
        self._hash_type = hash_type
        self._declared = hash_sum.lower()
        self._size = size
        self._seen = 0
        self._hash = _new(hash_type)
        self._also = None if also_type is None else _new(also_type)

    @property
    def seen(self) -> int:
        """How many bytes were counted so far."""
        return self._seen

    def update(self, data: bytes) -> None:
        """Count and hash ``data``; raises :class:`Mismatch` at the first byte too many."""
        self._seen += len(data)
        if self._seen > self._size:
            raise SizeMismatch(f"it has more than the {self._size} bytes that were declared")
        self._hash.update(data)
        if self._also is not None:
            self._also.update(data)

    def finish(self) -> str:
        """Return the hash in lower-case hex; raise :class:`Mismatch` if size or hash differ."""
        if self._seen != self._size:
            raise SizeMismatch(f"it has {self._seen} bytes where {self._size} were declared")
        computed: str = self._hash.hexdigest()
        if self._declared and computed != self._declared:
            raise HashMismatch(
                f"its {self._hash_type} is {computed} where {self._declared} was declared"
            )
        return computed

    def also_sum(self) -> str | None:
        """Return the second hash of the bytes so far, in lower-case hex; None without one."""
        return None if self._also is None else self._also.hexdigest()


@lru_cache(maxsize=64)
def digest_size(hash_type: str) -> int:
    """Return the bytes of a digest of ``hash_type``, a name that ``hashlib.new`` accepts.

    Raises ``ValueError`` for a hash that this Python cannot compute, and for one of variable length
    (SHAKE, FIPS 202 section 6.2).
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


@lru_cache(maxsize=64)
def canonical_name(hash_type: str) -> str:
    """Return the one name of a hash that has several, such as ``sha256`` for ``SHA2-256``.

    Raises ``ValueError`` as :func:`digest_size` does.
    """
    digest_size(hash_type)
    name: str = _new(hash_type).name
    return name.lower()


@lru_cache(maxsize=64)
def hash_name(hash_type: str) -> str:
    """As :func:`canonical_name`; a recorded name that this Python does not know, in lower case.

    Databases outlive the algorithms of a system: OpenSSL 3 dropped some.
    """
    try:
        return canonical_name(hash_type)
    except ValueError:
        return hash_type.lower()


def _new(hash_type: str) -> Any:
    # Not used for security, only to detect damage: so MD5 is allowed in FIPS mode, too.
    return hashlib.new(hash_type, usedforsecurity=False)

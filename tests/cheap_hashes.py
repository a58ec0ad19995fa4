"""Hashes of secrets that cost next to nothing, for tests in which their cost is no matter.

Use with ``pytest_plugins = ("tests.cheap_hashes",)`` in a test module.
"""

from __future__ import annotations

import pytest

from cartd.auth import checkers, secret_hash
from cartd.auth.secret_hash import SecretHash


@pytest.fixture
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """New hashes cost next to nothing, and so does an unknown name."""
    monkeypatch.setattr(secret_hash, "LOG_N", 2)
    nobodys = SecretHash(2, 8, 1, bytes(16), bytes(32))
    monkeypatch.setattr(checkers, "NOBODYS", nobodys)

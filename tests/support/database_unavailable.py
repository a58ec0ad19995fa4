"""The error for clients while the database is unavailable, and its reason for the log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cartd.errors import DatabaseUnavailable

UNAVAILABLE = "The database is unavailable; try again later"


@contextmanager
def database_unavailable(reason: str) -> Iterator[None]:
    """The block must raise an outage whose reason for the log matches the regular expression."""
    with pytest.raises(DatabaseUnavailable) as raised:
        yield
    assert str(raised.value) == UNAVAILABLE
    assert re.search(reason, raised.value.reason), raised.value.reason

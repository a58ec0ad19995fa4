"""What a client is told of a database that cannot be used, and what only the log has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cartd.errors import DatabaseUnavailable

UNAVAILABLE = "The database is unavailable; try again later"


@contextmanager
def database_unavailable(reason: str) -> Iterator[None]:
    """The block ends in an outage whose reason, for the log, the regular expression finds."""
    with pytest.raises(DatabaseUnavailable) as raised:
        yield
    assert str(raised.value) == UNAVAILABLE
    assert re.search(reason, raised.value.reason), raised.value.reason

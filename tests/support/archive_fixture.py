"""A fixture: a misbehaving archive, in the reactor of the tests.

Use with ``pytest_plugins = ("tests.support.archive_fixture",)`` in a test module.
"""

from __future__ import annotations

from typing import Any

import pytest_twisted

from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive


@pytest_twisted.async_yield_fixture
async def archive() -> Any:
    """It listens on a port of 127.0.0.1."""
    archive = FaultyArchive(the_reactor())
    archive.listen()
    yield archive
    await archive.stop()

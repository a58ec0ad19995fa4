"""Fixtures of misbehaving archives and of their clients.

Use with ``pytest_plugins = ("tests.support.archive_fixtures",)`` in a test module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from cartd.archive import http_client
from tests.support.archive_client_fixture import DATA, ClientFactory, ClientUnderTest, asking
from tests.support.databases import the_reactor
from tests.support.faulty_archive import FaultyArchive
from tests.support.twisted_client import twisted_client


@pytest_twisted.async_yield_fixture
async def archive() -> Any:
    """An archive in the reactor of the tests, which listens on a port of 127.0.0.1."""
    archive = FaultyArchive(the_reactor())
    archive.listen()
    yield archive
    await archive.stop()


@pytest.fixture(params=[http_client, twisted_client], ids=["cartd", "twisted"])
def make_client(request: pytest.FixtureRequest) -> ClientFactory:
    """Every test that uses it runs over cartd's own agent and over Twisted's."""
    made: ClientFactory = request.param
    return made


@pytest_twisted.async_yield_fixture
async def asked(make_client: ClientFactory) -> AsyncIterator[ClientUnderTest]:
    """An archive that holds ``DATA`` as file 7."""
    async with asking(make_client) as asked:
        asked.faulty.put("7", DATA)
        yield asked

"""Fixtures: every test that uses one runs over cartd's own agent and over Twisted's.

Use with ``pytest_plugins = ("tests.support.archive_clients",)`` in a test module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_twisted

from cartd.archive import http_client
from tests.support.archive_client_fixture import DATA, ClientFactory, ClientUnderTest, asking
from tests.support.twisted_client import twisted_client


@pytest.fixture(params=[http_client, twisted_client], ids=["cartd", "twisted"])
def make_client(request: pytest.FixtureRequest) -> ClientFactory:
    made: ClientFactory = request.param
    return made


@pytest_twisted.async_yield_fixture
async def asked(make_client: ClientFactory) -> AsyncIterator[ClientUnderTest]:
    """An archive that holds ``DATA`` as file 7."""
    async with asking(make_client) as asked:
        asked.faulty.put("7", DATA)
        yield asked

"""Files that several carts share by hard links: found, recorded and counted once."""

from __future__ import annotations

from random import Random

import pytest
import pytest_twisted

from cartd.store import Store
from tests.shared_files import Sharing

pytest_plugins = ("tests.database_fixtures",)


@pytest.mark.parametrize("seed", range(4))
@pytest_twisted.ensureDeferred
async def test_whatever_happens_each_byte_counts_once(store: Store, seed: int) -> None:
    sharing = Sharing(store, Random(seed))
    for _ in range(150):
        await sharing.step()
        await sharing.check()
    while sharing.trees:
        await sharing.delete()
    assert await store.usage() == (0, 0)
    assert await store.shares() == []

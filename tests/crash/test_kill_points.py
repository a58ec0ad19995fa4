"""No cart is lost, wrong or left over, wherever the service is killed.

Each point at which it may be killed is named in :mod:`tests.crash.kill_points` and reached here
once; other kills come at any moment, and while the service recovers from the last one.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.crash.harness import Harness, crash_harness
from tests.crash.kill_points import POINTS, RARE_POINTS
from tests.support.databases import Postgres

pytest_plugins = ("tests.support.database_fixtures",)

PARTS = 4
"""Parts into which the points are divided, one test each, to run in parallel."""


def meet(it: Harness, points: list[str]) -> None:
    """Kill the service once at each point, at one of its next passages."""
    random = Random(it.seed)
    for point in points:
        # A later passage may take longer to be reached.
        passage = 1 if point in RARE_POINTS else random.randint(1, 3)
        assert it.kill_at(point, passage) or it.kill_at(point, 1), point


@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_any_point_costs_nothing_that_was_promised(tmp_path: Path, part: int) -> None:
    with crash_harness(tmp_path, seed=f"points {part}") as it:
        meet(it, list(POINTS[part::PARTS]))
        it.stop_cleanly()
        assert it.done["downloads compared"]


def test_kills_at_any_moment_and_of_starts_cost_nothing_either(tmp_path: Path) -> None:
    with crash_harness(tmp_path, seed="moments", fail_rate=0.01) as it:
        random = Random(it.seed)
        it.kill_within(random.uniform(0.1, 1.0))
        it.kill_at_start("after-claim")
        it.stop_cleanly()


def test_a_kill_costs_nothing_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    database = postgres.create(template="synced")
    with crash_harness(tmp_path, seed="postgresql", database=database) as it:
        meet(it, ["before-mark_deleted", "after-record_linked"])
        it.stop_cleanly()
    postgres.drop(database)

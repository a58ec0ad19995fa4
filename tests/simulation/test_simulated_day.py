"""Days made of faults: posts, downloads, kills and every kind of failure, in an order by chance.

Whatever happens, five sentences hold:

1. A complete answer is byte-exact, or the connection is broken.
2. Two downloads under one ``ETag`` are the same bytes, across restarts.
3. A kill at any point loses no accepted cart and leaves no file with wrong bytes under its name.
4. Each accepted cart ends ready, or in error with the true cause, and the others go on.
5. No byte is taken away that an open download still needs.

The same days are played each time.  ``CARTD_DAYS=5000`` plays so many others, by chance.  Of one
that goes wrong a short form is looked for, which takes long; ``CARTD_RAW=1`` prints it as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.day import SimulatedDay
from tests.simulation.world import Place

DAYS = int(os.environ.get("CARTD_DAYS") or 0)
DAYS_OF_THE_SUITE = 80
STEPS = 25


def test_whatever_happens_on_a_day_the_five_sentences_hold() -> None:
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="cartd-day-", dir=shared if shared.is_dir() else None))
    try:
        SimulatedDay.place = Place(root)
        with SimulatedDay.place.simulated():
            run_state_machine_as_test(SimulatedDay, settings=_settings())
    finally:
        place = SimulatedDay.place
        print(f"{place.days} days, {place.lives} lives of the service, {place.steps} events")
        shutil.rmtree(root)


def _settings() -> settings:
    return settings(
        max_examples=DAYS or DAYS_OF_THE_SUITE,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=not DAYS,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, *([] if os.environ.get("CARTD_RAW") else [Phase.shrink])],
    )

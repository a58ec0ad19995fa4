"""Days made of faults: posts, downloads, kills and every kind of failure, in an order by chance.

Whatever happens, five sentences hold:

1. A complete answer is byte-exact, or the connection is broken.
2. Two downloads under one ``ETag`` are the same bytes, across restarts.
3. A kill at any point loses no accepted cart and leaves no file with wrong bytes under its name.
4. Each accepted cart ends ready, or in error with the true cause, and the others go on.
5. No byte is taken away that an open download still needs.

The same days are played each time.  ``CARTD_DAYS=5000`` plays so many others, by chance, or those
from the number ``CARTD_SEED`` on.  Of one that goes wrong a short form is looked for, which takes
long; ``CARTD_RAW=1`` prints it as it was.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.process import Place
from tests.simulation.scenario import SimulatedDay

DAYS = int(os.environ.get("CARTD_DAYS") or 0)
FIRST = int(os.environ.get("CARTD_SEED") or (secrets.randbits(32) if DAYS else 0))
DAYS_OF_THE_SUITE = 45
STEPS = 25


def test_whatever_happens_on_a_day_the_five_sentences_hold() -> None:
    shared = Path("/dev/shm")
    number = FIRST
    root = Path(tempfile.mkdtemp(prefix="cartd-day-", dir=shared if shared.is_dir() else None))
    try:
        SimulatedDay.place = Place(root)
        with SimulatedDay.place.simulated():
            for number in range(FIRST, FIRST + (DAYS or DAYS_OF_THE_SUITE)):
                # Of the many examples of one run, most are like each other.
                day = seed(number)(type("SimulatedDay", (SimulatedDay,), {}))
                run_state_machine_as_test(day, settings=_settings())
    finally:
        place = SimulatedDay.place
        lived = f"{place.days} days, {place.lives} lives of the service, {place.steps} events"
        print(f"{lived}, up to CARTD_SEED={number}")
        shutil.rmtree(root)


def _settings() -> settings:
    return settings(
        max_examples=1,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, *([] if os.environ.get("CARTD_RAW") else [Phase.shrink])],
    )

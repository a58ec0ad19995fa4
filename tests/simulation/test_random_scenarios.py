"""Random sequences of posts, downloads, kills and every kind of failure: five invariants hold.

1. A complete response is byte-exact, or the connection is aborted.
2. Two downloads with one ``ETag`` have the same bytes, across restarts.
3. A kill at any point loses no accepted cart and leaves no file with wrong bytes under its name.
4. Each accepted cart ends ready, or in error with the true cause, and other carts continue.
5. No byte is removed that an open download still needs.

The suite runs the same scenarios each time.  ``CARTD_SCENARIOS=5000`` runs so many others, with
random seeds, or with those from ``CARTD_SEED`` on.  A failing scenario is shrunk, which takes long;
``CARTD_RAW=1`` prints it as it was.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.process import Machine
from tests.simulation.scenario import RandomScenario

SCENARIOS = int(os.environ.get("CARTD_SCENARIOS") or 0)
FIRST = int(os.environ.get("CARTD_SEED") or (secrets.randbits(32) if SCENARIOS else 0))
DEFAULT_SCENARIOS = 45
STEPS = 25


def test_the_five_invariants_hold_in_random_scenarios() -> None:
    shared = Path("/dev/shm")
    number = FIRST
    root = Path(tempfile.mkdtemp(prefix="cartd-scenario-", dir=shared if shared.is_dir() else None))
    try:
        RandomScenario.machine = Machine(root)
        with RandomScenario.machine.simulated():
            for number in range(FIRST, FIRST + (SCENARIOS or DEFAULT_SCENARIOS)):
                # Of the examples of one run, most are similar.
                scenario = seed(number)(type("RandomScenario", (RandomScenario,), {}))
                run_state_machine_as_test(scenario, settings=_settings())
    finally:
        machine = RandomScenario.machine
        lived = f"{machine.scenarios} scenarios, {machine.starts} starts, {machine.steps} events"
        print(f"{lived}, up to CARTD_SEED={number}")
        shutil.rmtree(root)


def _settings() -> settings:
    return settings(
        max_examples=1,
        stateful_step_count=STEPS,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, *([] if os.environ.get("CARTD_RAW") else [Phase.shrink])],
    )

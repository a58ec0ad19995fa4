"""Start time, and resources of an idle service."""

from __future__ import annotations

import time

from bench.bench import Bench
from bench.cartd import timed_cartd
from bench.contest import Contest, Sample, Side
from bench.data import MIB
from bench.figures import Row, Target

IDLE_SECONDS = 5.0
_READY = Target(1.5)
_RESIDENT = Target(90.0)


def idle(bench: Bench) -> list[Row]:
    """With an empty directory, where the database is created first, and with an existing one."""
    archive = bench.nginx()
    with timed_cartd(bench.fresh("again"), archive.url):
        pass

    def started(name: str, *, anew: bool) -> Side:
        def run() -> Sample:
            directory = bench.fresh(name) if anew else bench.directory(name)
            with timed_cartd(directory, archive.url, every=0.005) as (server, seconds):
                began = server.cpu()
                time.sleep(bench.sized(IDLE_SECONDS, 1.0))
                return {
                    "s to the first answer": seconds,
                    "cpu": began,
                    "MiB resident": server.resident() / MIB,
                    "cpu, idle": server.cpu() - began,
                }

        return run

    contest = Contest(bench.rounds)
    contest.side("first", started("first", anew=True))
    contest.side("again", started("again", anew=False))
    contest.run()
    return [
        contest.row("first start", "s to the first answer", target=_READY, side="first"),
        contest.row("start", "s to the first answer", target=_READY, side="again"),
        contest.row("idle", "MiB resident", target=_RESIDENT, side="again", cpu="cpu, idle"),
    ]

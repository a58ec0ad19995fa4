"""Slow clients that hold connections: waits of honest clients meanwhile, and memory."""

from __future__ import annotations

import time

from bench.attackers import Attack, attacking
from bench.bench import Bench
from bench.carts import stage
from bench.contest import PEAK, Contest, Sample, with_peak
from bench.data import MIB
from bench.figures import Row, Target, percentile
from bench.prober import RATE, probing

HONEST = "127.0.0.2"
"""Source address of the clients that poll a status."""
_WAIT = Target(200.0)
_RESIDENT = Target(200.0)
_ALL = Target(0.95, at_least=True)
"""A client that was disconnected is missing for a moment."""


def attacks(bench: Bench) -> list[Row]:
    """Equal numbers of slow heads, bodies and readers, while the status of a cart is polled."""
    each, seconds = bench.sized((500, 75.0), (50, 3.0))  # longer than a head may take
    server = bench.cartd("cartd", bench.nginx())
    data = bench.data.big(16 * MIB)  # more than what fits between a server and its client
    stage(server, "ready", bench.data.small(100))
    stage(server, "big", data)

    def run() -> Sample:
        before = server.cpu()
        attack = Attack(heads=each, bodies=each, readers=each)
        with (
            attacking(server, "/big?filename=big.tar", attack),
            probing(server, "ready", address=HONEST) as prober,
        ):
            time.sleep(seconds)
        return {
            "ms, p50": percentile(prober.milliseconds, 0.5),
            "ms, p99": percentile(prober.milliseconds, 0.99),
            "attackers connected, of all": attack.held / attack.clients,
            "bytes of attackers/s": attack.bytes / seconds,
            "attackers cut off": float(sum(attack.ended.values())),
            "cpu": server.cpu() - before,
        }

    contest = Contest(bench.rounds)
    contest.side("cartd", with_peak(server, run))
    contest.run()
    work = (
        f"HEAD, {RATE:.0f} a second, beside 3 × {each} clients of a byte at a time, {seconds:g} s"
    )
    return [
        contest.row(work, "ms, p50"),
        contest.row(work, "ms, p99", target=_WAIT, cpu=""),
        contest.row(work, PEAK, target=_RESIDENT, cpu=""),
        contest.row(work, "attackers connected, of all", target=_ALL, cpu=""),
        contest.row(work, "bytes of attackers/s", cpu=""),
        contest.row(work, "attackers cut off", cpu=""),
    ]

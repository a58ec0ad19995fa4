"""The status of a ready cart: requests per second, and their latency."""

from __future__ import annotations

import time

from bench.bench import Bench
from bench.carts import stage
from bench.contest import PEAK, Contest, Sample, Side, with_peak
from bench.data import MIB, CartData
from bench.figures import Row, Target, percentile
from bench.load import loaded
from bench.pacifica import CARTD_PROCESSES, pacifica_cartd
from bench.peers import tool
from bench.prober import RATE, probing
from bench.server import Server
from bench.wrk import heads_at_full_rate

DOWNLOADS = 8
PACIFICA = f"pacifica-cartd 0.7.0, uWSGI, {CARTD_PROCESSES} processes"
_EIGHT = Target(8.0, at_least=True, ratio=True)
_UNDER_LOAD = Target(50.0)


def heads(bench: Bench) -> list[Row]:
    """At full rate against Pacifica; at a steady rate while idle, and under load."""
    archive = bench.nginx()
    cartd = bench.cartd("cartd", archive)
    ready = bench.data.small(100)
    size = bench.sized(256 * MIB, 16 * MIB)
    big = bench.data.big(size)
    # Other files, which must be fetched: files of the other cart would be linked.
    staged = bench.data.big(size, first=len(big.entries))
    stage(cartd, "ready", ready)
    stage(cartd, "big", big)
    seconds = bench.sized(10, 2)

    def idle() -> Sample:
        return _waits(cartd, seconds)

    def busy() -> Sample:
        with loaded(cartd, staged=staged, uid="big", downloads=DOWNLOADS):
            return _waits(cartd, seconds)

    contest = Contest(bench.rounds)
    contest.side("cartd", with_peak(cartd, _full_rate(bench, cartd, seconds)))
    contest.peer(PACIFICA, lambda: _pacifica(bench, archive, ready, seconds))
    contest.side("idle", idle)
    contest.side("busy", with_peak(cartd, busy))
    contest.run()
    work = "HEAD of a ready cart"
    at_rate = f"{work}, {RATE:.0f} a second"
    load = f"4 × {big.total_bytes // MIB // 4} MiB staged, {DOWNLOADS} downloads"
    return [
        contest.row(work, "requests/s", PACIFICA, _EIGHT),
        contest.row(work, "ms, p50 of 16 at full rate", PACIFICA, cpu=""),
        contest.row(work, "ms, p99 of 16 at full rate", PACIFICA, cpu=""),
        contest.row(work, PEAK, cpu=""),
        contest.row(f"{at_rate}, nothing else", "ms, p50", side="idle"),
        contest.row(f"{at_rate}, nothing else", "ms, p99", side="idle", cpu=""),
        contest.row(f"{at_rate}, {load}", "ms, p50", side="busy"),
        contest.row(f"{at_rate}, {load}", "ms, p99", target=_UNDER_LOAD, side="busy", cpu=""),
        contest.row(f"{at_rate}, {load}", PEAK, side="busy", cpu=""),
    ]


def _full_rate(bench: Bench, server: Server, seconds: int) -> Side:
    tool("wrk")
    return lambda: heads_at_full_rate(server, "ready", bench.scratch, seconds=seconds)


def _pacifica(bench: Bench, archive: Server, ready: CartData, seconds: int) -> Side:
    server = bench.started(pacifica_cartd(bench.fresh("pacifica"), bench.peers(), archive.url))
    stage(server, "ready", ready)
    return _full_rate(bench, server, seconds)


def _waits(server: Server, seconds: float) -> Sample:
    before = server.cpu()
    with probing(server, "ready") as prober:
        time.sleep(seconds)
    waits = prober.milliseconds
    return {
        "ms, p50": percentile(waits, 0.5),
        "ms, p99": percentile(waits, 0.99),
        "cpu": server.cpu() - before,
    }

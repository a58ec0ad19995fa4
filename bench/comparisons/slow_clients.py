"""Downloads by many slow clients: memory, and whether every byte is right."""

from __future__ import annotations

from bench.bench import Bench
from bench.carts import stage
from bench.comparisons.downloads import fetch_checked
from bench.contest import PEAK, Contest, Sample, with_peak
from bench.data import MIB
from bench.figures import Row, Target
from bench.slow_readers import read_slowly

RATE = MIB
_RESIDENT = Target(200.0)
_NONE_WRONG = Target(0.0)


def slow_clients(bench: Bench) -> list[Row]:
    """Together they read the whole tar, each from another position, at 1 MiB per second."""
    clients, size, seconds = bench.sized((200, 256 * MIB, 20.0), (20, 16 * MIB, 3.0))
    data = bench.data.big(size)
    server = bench.cartd("cartd", bench.nginx())
    stage(server, "big", data)
    tar = bench.files / "big.tar"
    fetch_checked(f"{server.url}big?filename=big.tar", tar, data)

    def run() -> Sample:
        before = server.cpu()
        reading = read_slowly(
            server, "/big?filename=big.tar", tar, clients=clients, rate=RATE, seconds=seconds
        )
        return {
            "bytes wrong": float(reading.wrong),
            "MiB read and right": reading.right / MIB,
            "cpu": server.cpu() - before,
        }

    contest = Contest(bench.rounds)
    contest.side("cartd", with_peak(server, run))
    contest.run()
    work = f"{clients} slow downloads, {data.total_bytes // MIB:,} MiB in 4 files, {seconds:g} s"
    return [
        contest.row(work, PEAK, target=_RESIDENT),
        contest.row(work, "bytes wrong", target=_NONE_WRONG, cpu=""),
        contest.row(work, "MiB read and right", cpu=""),
    ]

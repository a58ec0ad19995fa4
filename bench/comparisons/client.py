"""Carts by ``cart get -x``, against curl and tar, which verify nothing or in a second pass."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from bench import processes
from bench.bench import Bench
from bench.carts import stage
from bench.contest import PEAK, Contest, Sample
from bench.data import MIB, CartData
from bench.figures import Row, Target
from bench.peers import tool
from bench.processes import MeasurementFailed
from bench.server import Server

_PEAK_LIMIT = 100.0
_CLIENT = """
from pathlib import Path
from cartd_client.cli.main import main
try:
    main()
finally:
    # Not getrusage(): its peak includes that of the process that has forked this one.
    status = Path("/proc/self/status").read_text()
    print(status.partition("VmHWM:")[2].split()[0])
"""


def client(bench: Bench) -> list[Row]:
    """Big files, verified by both sides, and small ones, verified by the client alone."""
    cartd = bench.cartd("cartd", bench.nginx())
    big = bench.data.big(bench.sized(256 * MIB, 16 * MIB))
    small = bench.data.small(bench.sized(100_000, 2_000))
    return [
        *_compared(bench, cartd, "big", big, verified=True),
        *_compared(bench, cartd, "small", small, verified=False),
    ]


def _compared(
    bench: Bench, cartd: Server, uid: str, data: CartData, *, verified: bool
) -> list[Row]:
    stage(cartd, uid, data)
    url = f"{cartd.url}{uid}?filename={uid}.tar"
    command = f"{tool('curl')} -sSf {shlex.quote(url)} | tar x"
    if verified:
        sums = bench.files / f"{uid}.sha1"
        lines = (f"{entry.sha1}  {uid}/{entry.path}\n" for entry in data.entries)
        sums.write_text("".join(lines))
        command += f" && sha1sum --quiet -c {shlex.quote(str(sums))}"
    peer = "curl, tar, sha1sum" if verified else "curl, tar"
    contest = Contest(bench.rounds)
    contest.side("cart", lambda: _got(bench, cartd.url, uid, data))
    contest.peer(peer, lambda: lambda: _piped(bench, command, data))
    contest.run()
    work = f"cart get -x, {len(data.entries):,} files, {data.total_bytes // MIB:,} MiB"
    goal = Target(0.9 if verified else 0.5, at_least=True, ratio=True)
    return [
        contest.row(work, "MB/s", peer, goal, side="cart"),
        contest.row(work, PEAK, target=Target(_PEAK_LIMIT), side="cart", cpu=""),
    ]


def _got(bench: Bench, service: str, uid: str, data: CartData) -> Sample:
    """Download, unpack and verify by the client."""
    target = _target(bench)
    command = ["--url", service, "get", uid, "-x", str(target), "--progress", "none"]
    run = processes.finished([sys.executable, "-c", _CLIENT, *command])
    _check_count(target, data)
    return {
        "s": run.seconds,
        "MB/s": data.total_bytes / 1e6 / run.seconds,
        PEAK: int(run.output.split()[-1]) / 1024,
        "cpu": run.cpu,
    }


def _piped(bench: Bench, command: str, data: CartData) -> Sample:
    """Download and unpack by curl and tar, and verify by a second pass if the command says so."""
    target = _target(bench)
    run = processes.finished(["/bin/sh", "-c", command], directory=target)
    _check_count(target, data)
    return {"s": run.seconds, "MB/s": data.total_bytes / 1e6 / run.seconds, "cpu": run.cpu}


def _target(bench: Bench) -> Path:
    """Return a new directory to unpack into, while the disk has nothing else to do."""
    target = bench.fresh("unpacked")
    target.mkdir()
    processes.sync_disks()
    return target


def _check_count(target: Path, data: CartData) -> None:
    count = sum(path.is_file() for path in target.rglob("*"))
    if count != len(data.entries):
        raise MeasurementFailed(f"{count} files were unpacked, not {len(data.entries)}")

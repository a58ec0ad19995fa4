"""HEAD requests at full rate, by wrk."""

from __future__ import annotations

import json
from pathlib import Path

from bench import processes
from bench.peers import tool
from bench.processes import MeasurementFailed
from bench.server import Server

CONNECTIONS = 16

_SCRIPT = """
wrk.method = "HEAD"
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '\\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}\\n',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def heads_at_full_rate(
    server: Server, uid: str, directory: Path, *, seconds: int
) -> dict[str, float]:
    """Measure ``requests/s`` over 16 connections, and the latency in milliseconds."""
    script = directory / "head.lua"
    script.write_text(_SCRIPT)
    before = server.cpu()
    run = processes.finished(
        [
            *(tool("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"),
            *("-s", script, f"{server.url}{uid}"),
        ]
    )
    cpu = server.cpu() - before
    figures = json.loads(run.output.splitlines()[-1])
    if figures["errors"]:
        raise MeasurementFailed(
            f"{figures['errors']:.0f} of {figures['requests']:.0f} HEAD requests failed"
        )
    return {
        "requests/s": figures["requests"] / figures["seconds"],
        "ms, p50 of 16 at full rate": figures["p50"],
        "ms, p99 of 16 at full rate": figures["p99"],
        "cpu": cpu,
    }

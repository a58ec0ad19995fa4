"""Contests: sides are measured alternately, so that changes over time affect all alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from http.client import HTTPException

from bench.data import MIB
from bench.figures import Figures, Row, Target
from bench.peers import PeerUnavailable
from bench.processes import MeasurementFailed
from bench.server import Server

Sample = Mapping[str, float]
"""Figures of one run, by measure; ``cpu`` is its CPU seconds."""
Side = Callable[[], Sample]
FAILURES = (PeerUnavailable, MeasurementFailed, OSError, HTTPException)
"""Failures that a peer may have."""
PEAK = "MiB at peak"


def with_peak(server: Server, run: Side) -> Side:
    """Return the same side, with its server's peak memory added."""

    def watched() -> Sample:
        server.forget_peak()
        sample = run()
        return {**sample, PEAK: server.peak() / MIB}

    return watched


class Contest:
    """The sides of one comparison, and their samples of each round."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._sides: dict[str, Side] = {}
        self._peers: set[str] = set()
        self._absent: dict[str, str] = {}
        self._samples: dict[str, list[Sample]] = {}

    def side(self, name: str, run: Side) -> None:
        """Add one of cartd's own sides: if it fails, the comparison fails."""
        self._sides[name] = run

    def peer(self, name: str, prepare: Callable[[], Side]) -> None:
        """Add a peer: if it is unavailable or fails, its rows say so, and other sides continue."""
        self._peers.add(name)
        try:
            self._sides[name] = prepare()
        except FAILURES as error:
            self._leave_out(name, error)

    def run(self) -> None:
        """Run each side once per round, in order: A B A B."""
        for number in range(1, self._rounds + 1):
            for name in list(self._sides):
                try:
                    sample = self._sides[name]()
                except FAILURES as error:
                    if name not in self._peers:
                        raise
                    self._leave_out(name, error)
                    continue
                self._samples.setdefault(name, []).append(sample)
                values = ", ".join(f"{key} {value:.4g}" for key, value in sample.items())
                _print(f"round {number}, {name}: {values}")

    def row(
        self,
        work: str,
        measure: str,
        peer: str = "",
        target: Target | None = None,
        *,
        side: str = "cartd",
        cpu: str = "cpu",
    ) -> Row:
        """Return one measure as a row of the table, ``side`` against ``peer``."""
        ours = self._figures(side, measure, cpu)
        assert ours is not None
        absent = self._absent.get(peer, "")
        theirs = self._figures(peer, measure, cpu) if peer and not absent else None
        return Row(work, measure, ours, peer, theirs, absent, target)

    def _figures(self, side: str, measure: str, cpu: str) -> Figures | None:
        samples = self._samples.get(side)
        if samples is None:
            return None
        return Figures(
            tuple(sample[measure] for sample in samples),
            tuple(sample[cpu] for sample in samples if cpu in sample),
        )

    def _leave_out(self, name: str, error: Exception) -> None:
        self._sides.pop(name, None)
        self._absent[name] = str(error)
        _print(f"{name} NOT AVAILABLE: {error}")


def _print(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)

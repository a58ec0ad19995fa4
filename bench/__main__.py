"""``python -m bench NAME...``: run comparisons, print the table, store the results."""

from __future__ import annotations

import argparse
import fcntl
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import results
from bench.bench import Bench
from bench.comparisons import COMPARISONS
from bench.contest import FAILURES
from bench.publishing import publish
from bench.results import Outcome
from bench.trash import Trash

PLACE = Path(__file__).parent.parent / ".bench"


def main(arguments: list[str]) -> int:
    """Run the chosen comparisons; return 1 if one failed."""
    options = _parser().parse_args(arguments)
    file: Path = options.results
    if options.names == ["report"]:
        print(results.report(results.read(file)))
        return 0
    if options.names == ["publish"]:
        publish(results.read(file), PLACE)
        return 0
    names = options.names or list(COMPARISONS)
    unknown = [name for name in names if name not in COMPARISONS]
    if unknown:
        print(f"unknown comparison: {', '.join(unknown)}", file=sys.stderr)
        return 2
    with exclusive_lock():
        failed = _compare_all(names, options)
    kept = results.read(file)
    print(results.report({name: kept[name] for name in names}))
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


def _compare_all(names: list[str], options: argparse.Namespace) -> list[str]:
    """Run and store the comparisons one by one; return names and reasons of failed ones."""
    failed = []
    for name in names:
        outcome = _compare(name, quick=options.quick, rounds=options.rounds)
        if outcome.failure:
            failed.append(f"{name}: {outcome.failure}")
        results.keep(options.results, name, outcome)
    Trash(PLACE / "trash").empty()
    return failed


@contextmanager
def exclusive_lock() -> Iterator[None]:
    """Prevent concurrent benchmarks, which would measure each other and share one directory."""
    PLACE.mkdir(exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another benchmark is running in {PLACE}") from None
        yield


def _compare(name: str, *, quick: bool, rounds: int) -> Outcome:
    print(f"{name}: {COMPARISONS[name].about}", file=sys.stderr, flush=True)
    circumstances = results.circumstances(quick=quick, rounds=rounds)
    outcome = Outcome(circumstances, [])
    try:
        with Bench(PLACE, quick=quick, rounds=rounds) as bench:
            for row in COMPARISONS[name].compare(bench):
                outcome.rows.append(row)
    except FAILURES as error:
        traceback.print_exc()
        outcome.failure = f"{type(error).__name__}: {error}"
    return outcome


def _parser() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMPARISONS)
    listed = "\n".join(f"  {name:{width}}  {it.about}" for name, it in COMPARISONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compare cartd with its alternatives.",
        epilog=f"comparisons (default: all):\n{listed}\n"
        f"  {'report':{width}}  print the table of stored results\n"
        f"  {'publish':{width}}  write that table and the plots into docs/performance.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs (5)")
    parser.add_argument("--quick", action="store_true", help="small sizes, as a check")
    parser.add_argument("--results", type=Path, default=PLACE / "results.json")
    return parser


def _terminated(_number: int, _frame: object) -> None:
    """End the servers too, as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("stopped")

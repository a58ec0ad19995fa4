"""``python -m tests.api_check --minutes 10``: the service against its description for so long."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.api_check.running import check, prepare
from tests.support.cart_site import cart_site


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.api_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    print(f"checking for {options.minutes:g} minutes, seed {options.seed}", file=sys.stderr)
    with (
        TemporaryDirectory() as directory,
        cart_site(Path(directory), ini="[page]\nlist = on\n") as site,
    ):
        prepare(site)
        outcome = check(
            site, f"--max-time={max(1, int(options.minutes * 60))}", f"--seed={options.seed}"
        )
    print(outcome.report)
    for (method, path, status), times in sorted(outcome.seen.items()):
        print(f"{times:8} {method} {path} {status}")
    return outcome.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

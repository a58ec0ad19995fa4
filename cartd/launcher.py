"""``pacifica-cartd``: the command of Pacifica Cartd, which starts the same service as twistd."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from twisted.scripts import twistd


def twistd_arguments(arguments: Sequence[str]) -> list[str]:
    """Translate Pacifica's command line into that of ``twistd``."""
    parser = ArgumentParser(
        prog="pacifica-cartd",
        description="Run the cart service in the foreground, as `twistd -n cartd` does.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration file (INI)")
    parser.add_argument("-p", "--port", metavar="PORT", help="port to listen on")
    parser.add_argument("-a", "--address", metavar="ADDRESS", help="address to listen on")
    parser.add_argument(
        "--cpconfig", metavar="FILE", help="ignored, as cartd does not use CherryPy"
    )
    args = parser.parse_args(arguments)
    options = [
        f"--{name}={value}"
        for name in ("config", "port", "address")
        if (value := getattr(args, name)) is not None
    ]
    # On Windows, twistd writes no pid file and does not know the option.
    no_pidfile = [] if os.name == "nt" else ["--pidfile="]
    return ["twistd", "--nodaemon", *no_pidfile, "cartd", *options]


def main() -> None:
    sys.argv = twistd_arguments(sys.argv[1:])
    twistd.run()

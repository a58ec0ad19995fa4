"""Runs a Python script with other values of a module's constants.

::

    cartd.program = with_values(cartd.twistd, {"cartd.staging.stager.LEASE_SECONDS": 2.0})
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path


def with_values(command: Sequence[str], values: Mapping[str, float]) -> tuple[str, ...]:
    """Return a command line that runs ``command``, a script, with these constants by name."""
    given = [f"{name}={value}" for name, value in values.items()]
    return sys.executable, __file__, *given, "--", *command


def _run(arguments: list[str]) -> None:
    end = arguments.index("--")
    sys.argv = arguments[end + 1 :]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    # Modules of cartd that are loaded already have imported the values from each other.
    for name in [name for name in sys.modules if name.partition(".")[0] == "cartd"]:
        del sys.modules[name]
    for given in arguments[:end]:
        name, _, value = given.partition("=")
        module, _, constant = name.rpartition(".")
        loaded = import_module(module)
        assert hasattr(loaded, constant), name
        setattr(loaded, constant, float(value))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _run(sys.argv[1:])

"""The table of targets.  A new one is a module beside this, a name here, a file in ``corpus/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

NAMES = (
    "manifest", "ranges", "conditions", "uid", "filename", "authorization",
    "config", "tokens", "response", "stream",
)  # fmt: skip


class Target(NamedTuple):
    """See :mod:`tests.fuzz`."""

    name: str
    check: Callable[[bytes], None]
    words: Sequence[bytes]


def target(name: str) -> Target:
    """Import it: whoever instruments imports does so before."""
    module = import_module(f"tests.fuzz.{name}")
    return Target(name, module.check, module.WORDS)

"""The targets.  A new target is a module in this package, a name here, a file in ``corpus/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

NAMES = (
    "manifest", "ranges", "conditions", "uid", "filename", "authorization",
    "config", "tokens", "response", "stream", "client_events", "client_manifest",
)  # fmt: skip


class Target(NamedTuple):
    """See :mod:`tests.fuzz`."""

    name: str
    check: Callable[[bytes], None]
    words: Sequence[bytes]


def target(name: str) -> Target:
    """Import the target; imports must be instrumented before this call."""
    module = import_module(f"tests.fuzz.{name}")
    return Target(name, module.check, module.WORDS)

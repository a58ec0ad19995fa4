"""One setting: its names, its default, its parser and its description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table :data:`cartd.config.settings.SETTINGS`."""

    field: str
    """The attribute of :class:`~cartd.config.Config`."""
    section: str
    key: str
    default: str
    """As it is written in a file."""
    parse: Callable[[str], Any]
    unit: str
    description: str
    """One sentence, for ``--help`` and the documentation."""
    environment: str | None = None
    option: str | None = None
    short: str | None = None
    repeatable: bool = False
    """Takes several values: one per line in a file, separated by white space in a variable."""
    pacifica_key: str | None = None
    """Pacifica's name of the key, as ``pacifica_variable`` of the variable, where it differs."""
    pacifica_variable: str | None = None

"""What is known of one setting: where it may be written, what it means, and how it is read."""

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
    """As an administrator would write it."""
    parse: Callable[[str], Any]
    unit: str
    description: str
    """One sentence, for ``--help`` and the documentation."""
    environment: str | None = None
    option: str | None = None
    short: str | None = None
    repeatable: bool = False
    """Given again for more; one a line in the file, between white space in the environment."""
    pacifica_key: str | None = None
    """Pacifica's key, and ``pacifica_variable`` its variable, where this one has another name."""
    pacifica_variable: str | None = None

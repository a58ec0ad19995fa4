"""What a schema version means to this release: values in, values out."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum

from cartd.errors import CartdError

CURRENT = (3, 0)
"""The schema of this release: (major, minor).  A minor step only adds what may be ignored."""
UPGRADABLE = frozenset({(0, 1), (1, 0), (2, 0)})
_OWN_TABLES = frozenset({"cart", "file", "cartsystem"})
_CURRENT_TEXT = "{}.{}".format(*CURRENT)


class SchemaCondition(StrEnum):
    """How a database's schema compares with the schema of this release."""

    MISSING = "missing"
    OLDER = "older"
    CURRENT = "current"
    NEWER_MINOR = "newer_minor"
    NEWER = "newer"
    FOREIGN = "foreign"


_EXPLANATIONS = {
    SchemaCondition.MISSING: "The database has no tables yet; cartd-cmd dbsync creates them",
    SchemaCondition.OLDER: (
        "The database's schema is version {found}, older than {ours}; cartd-cmd dbsync upgrades it"
    ),
    SchemaCondition.CURRENT: "The database's schema is current: version {ours}",
    SchemaCondition.NEWER_MINOR: (
        "The database's schema is version {found}, newer than {ours} but safe to use"
    ),
    SchemaCondition.NEWER: (
        "The database's schema is version {found}, which this release does not support;"
        " it uses {ours}: run the release that created it"
    ),
    SchemaCondition.FOREIGN: (
        "The database has tables named cart or file, but no version of cartd's schema:"
        " it belongs to another program"
    ),
}


class UpgradeError(CartdError):
    """The schema could not be upgraded; nothing was changed."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema of a database."""

    condition: SchemaCondition
    version: str | None
    """As recorded in the database; None if it is not recorded."""

    @property
    def safe(self) -> bool:
        """Whether this release may use it: same major version, and not an older minor one."""
        return self.condition in (SchemaCondition.CURRENT, SchemaCondition.NEWER_MINOR)

    @property
    def current(self) -> bool:
        """Whether it is exactly the schema of this release."""
        return self.condition is SchemaCondition.CURRENT

    @property
    def explanation(self) -> str:
        """One sentence for the administrator."""
        return _EXPLANATIONS[self.condition].format(found=self.version, ours=_CURRENT_TEXT)


def state_of(*, tables: Set[str], version: str | None) -> SchemaState:
    """Return the state of a database that has ``tables`` and the recorded ``version``."""
    return SchemaState(_condition(tables, version), version)


def _condition(tables: Set[str], version: str | None) -> SchemaCondition:
    if version is None:
        return SchemaCondition.FOREIGN if tables & _OWN_TABLES else SchemaCondition.MISSING
    match = re.fullmatch(r"(\d+)\.(\d+)", version, re.ASCII)
    found = (int(match[1]), int(match[2])) if match else None
    if found == CURRENT:
        return SchemaCondition.CURRENT
    if found in UPGRADABLE:
        return SchemaCondition.OLDER
    if found is not None and found[0] == CURRENT[0]:
        return SchemaCondition.NEWER_MINOR
    return SchemaCondition.NEWER

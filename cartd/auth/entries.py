"""The format of the token file: the users of the service, one per line.

::

    # Comments and empty lines are ignored.
    alice  admin  sha256:HASH
    bob    user   sha256:HASH
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cartd.auth.tokens import TokenHash
from cartd.model import User

ROLES = {"user": False, "admin": True}
NAME = re.compile(r"[A-Za-z0-9_~][A-Za-z0-9._~@-]{0,254}")
"""The syntax of a uid, and ``@``: many sites use e-mail addresses as user names."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: a name, its role, and the hash of its token."""

    user: User
    hash: TokenHash

    def __str__(self) -> str:
        return f"{self.user.name} {'admin' if self.user.admin else 'user'} {self.hash}"


def check_name(name: str) -> str:
    """Return ``name``; raise ValueError with the rule that it breaks."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "a name has 1 to 255 characters of A-Z a-z 0-9 . _ ~ @ - and does not begin with . @ -"
        )
    return name


def parse(text: str) -> Mapping[str, Entry]:
    """Return the entries by name.  Raises ValueError with the line number and the reason."""
    entries: dict[str, Entry] = {}
    for number, line in _lines(text):
        try:
            entry = _entry(line)
            if entry.user.name in entries:
                raise ValueError(f"{entry.user.name} occurs twice")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        entries[entry.user.name] = entry
    return entries


def line_name(line: str) -> str | None:
    """Return the name in a line, or None for a comment or an empty line."""
    stripped = line.strip()
    return None if not stripped or stripped.startswith("#") else stripped.split()[0]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line_name(line) is not None:
            yield number, line


def _entry(line: str) -> Entry:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError("must be NAME ROLE HASH")
    name, role, kept = parts
    if role not in ROLES:
        raise ValueError("the role must be user or admin")
    return Entry(User(check_name(name), ROLES[role]), TokenHash.parse(kept))

"""The form of the file of tokens: who may use the service, one line a name.

::

    # Comments and empty lines may stand anywhere.
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
"""What a uid may be, and an ``@`` in it: many sites name people by their addresses."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: a name, what it may, and what is kept of its token."""

    user: User
    hash: TokenHash

    def __str__(self) -> str:
        return f"{self.user.name} {'admin' if self.user.admin else 'user'} {self.hash}"


def check_name(name: str) -> str:
    """Raises ValueError with the rule that ``name`` breaks."""
    if not NAME.fullmatch(name):
        raise ValueError(
            "a name is 1 to 255 of A-Z a-z 0-9 . _ ~ @ - and begins with none of . @ -"
        )
    return name


def parse(text: str) -> Mapping[str, Entry]:
    """The entries by their names.  Raises ValueError, which tells the line and the fault."""
    entries: dict[str, Entry] = {}
    for number, line in _lines(text):
        try:
            entry = _entry(line)
            if entry.user.name in entries:
                raise ValueError(f"{entry.user.name} is there twice")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        entries[entry.user.name] = entry
    return entries


def line_name(line: str) -> str | None:
    """Whose line it is; nobody's, if it is a comment or empty."""
    stripped = line.strip()
    return None if not stripped or stripped.startswith("#") else stripped.split()[0]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line_name(line) is not None:
            yield number, line


def _entry(line: str) -> Entry:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError("is not NAME ROLE HASH")
    name, role, kept = parts
    if role not in ROLES:
        raise ValueError("the role is neither user nor admin")
    return Entry(User(check_name(name), ROLES[role]), TokenHash.parse(kept))

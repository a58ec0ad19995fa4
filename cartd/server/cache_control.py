"""Who may keep an answer: Cache-Control, on every answer (RFC 9111, section 5.2.2).

An answer that says nothing may be kept by its heuristics' grace, a 404 and a 204 too (RFC 9110,
section 15.1): a shared cache would go on telling what is no longer so, or tell one user what is
another's.
"""

from __future__ import annotations

NO_STORE = "no-store"
"""For what is true at this moment only: statuses, errors, and what came of a change."""
REVALIDATED = "private, no-cache, no-transform"
"""For bytes with validators: their receiver may keep them and asks, before each use, whether they
are still there for it; nobody on the way keeps or changes them."""
PUBLIC = "public, max-age=3600"
"""For what is the same for everybody, and changes with a release."""

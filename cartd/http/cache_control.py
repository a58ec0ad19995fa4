"""Values of Cache-Control, which every response has (RFC 9111, section 5.2.2).

Caches may store a response without it by heuristics, even a 404 or a 204 (RFC 9110, section 15.1):
a shared cache would then serve outdated responses, or those of one user to another.
"""

from __future__ import annotations

NO_STORE = "no-store"
"""For statuses, errors, and responses to changes."""
REVALIDATED = "private, no-cache, no-transform"
"""For bytes with validators: the client may store them but must revalidate before each use; proxies
must neither store nor change them."""
PUBLIC = "public, max-age=3600"
"""For content that is the same for all users and changes only with a release."""

"""What one user may have under way, as settings of the section ``[auth]``."""

from __future__ import annotations

from cartd.config import values
from cartd.config.setting import Setting

SHARES = (
    Setting(
        "auth_max_carts_staging",
        "auth",
        "max_carts_staging",
        "none",
        values.limit(values.whole(0, 1_000_000_000)),
        "carts, or none",
        "How many carts of one user may be on their way to ready at the same time.",
    ),
    Setting(
        "auth_max_files",
        "auth",
        "max_files",
        "none",
        values.limit(values.whole(0, 1_000_000_000)),
        "files, or none",
        "How many files of one user's carts may be still to be staged, a new cart's included.",
    ),
    Setting(
        "auth_max_bytes",
        "auth",
        "max_bytes",
        "none",
        values.limit(values.parse_size),
        "size, or none",
        "A user of whose carts so many bytes are still to be staged may post no more.",
    ),
)

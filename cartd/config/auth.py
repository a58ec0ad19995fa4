"""Who may use the service, and what one user may have under way: the section ``[auth]``."""

from __future__ import annotations

from cartd.config import parsers
from cartd.config.setting import Setting

AUTH = (
    Setting(
        "auth_token_file",
        "auth",
        "token_file",
        "none",
        parsers.optional(parsers.path),
        "file, or none",
        "The names and hashed tokens of those who may use the service; cartd-cmd token keeps it.",
    ),
    Setting(
        "auth_proxy_header",
        "auth",
        "proxy_header",
        "none",
        parsers.optional(parsers.header_name),
        "header's name, or none",
        "The header in which a trusted proxy says who asks, as X-Remote-User.",
    ),
    Setting(
        "auth_trusted_proxies",
        "auth",
        "trusted_proxies",
        "none",
        parsers.networks,
        "IP addresses, networks, unix",
        "The peers from which that header is believed, with white space or commas between them;"
        " unix is whoever connects to a unix: endpoint.",
    ),
    Setting(
        "auth_max_carts_staging",
        "auth",
        "max_carts_staging",
        "none",
        parsers.limit_or_none(parsers.integer(0, 1_000_000_000)),
        "carts, or none",
        "How many carts of one user may be on their way to ready at the same time.",
    ),
    Setting(
        "auth_max_files",
        "auth",
        "max_files",
        "none",
        parsers.limit_or_none(parsers.integer(0, 1_000_000_000)),
        "files, or none",
        "How many files of one user's carts may be still to be staged, a new cart's included.",
    ),
    Setting(
        "auth_max_bytes",
        "auth",
        "max_bytes",
        "none",
        parsers.limit_or_none(parsers.parse_size),
        "size, or none",
        "A user of whose carts so many bytes are still to be staged may post no more.",
    ),
)

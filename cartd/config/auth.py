"""Settings of the section ``[auth]``: authentication and limits per user."""

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
        "File with the users' names and hashed tokens, managed by cartd-cmd token.",
    ),
    Setting(
        "auth_proxy_header",
        "auth",
        "proxy_header",
        "none",
        parsers.optional(parsers.header_name),
        "header's name, or none",
        "Header in which a trusted proxy passes the user's name, such as X-Remote-User.",
    ),
    Setting(
        "auth_trusted_proxies",
        "auth",
        "trusted_proxies",
        "none",
        parsers.networks,
        "IP addresses, networks, unix",
        "Peers from which proxy_header is accepted, separated by white space or commas; unix is"
        " every client of a unix: endpoint.",
    ),
    Setting(
        "auth_max_carts_staging",
        "auth",
        "max_carts_staging",
        "none",
        parsers.limit_or_none(parsers.integer(0, 1_000_000_000)),
        "carts, or none",
        "Maximum number of unfinished carts per user.",
    ),
    Setting(
        "auth_max_files",
        "auth",
        "max_files",
        "none",
        parsers.limit_or_none(parsers.integer(0, 1_000_000_000)),
        "files, or none",
        "Maximum number of unstaged files per user, including those of the cart being posted.",
    ),
    Setting(
        "auth_max_bytes",
        "auth",
        "max_bytes",
        "none",
        parsers.limit_or_none(parsers.parse_size),
        "size, or none",
        "Reject new carts of a user who has at least this many bytes waiting to be staged.",
    ),
)

"""``cartd-cmd token``: manages the users' tokens."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TextIO

from cartd.auth import TokenFile
from cartd.auth.tokens import check_name
from cartd.config import Config
from cartd.errors import ConfigError
from cartd.files import describe_permissions, group_name, unreadable_by, user_name


def add_actions(parser: ArgumentParser) -> None:
    """Add the arguments of ``cartd-cmd token`` to the parser."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="create a token for a new name, and print it once")
    add.add_argument("name", type=_name, metavar="NAME")
    add.add_argument(
        "--admin", action="store_true", help="for an administrator, who may access all carts"
    )
    actions.add_parser("list", help="print the names and their roles")
    revoke = actions.add_parser("revoke", help="revoke the token of a name")
    revoke.add_argument("name", metavar="NAME")


def token(config: Config, args: Namespace, out: TextIO, messages: TextIO) -> int:
    """Run the action; ``out`` gets output for scripts, ``messages`` text for people."""
    if config.auth_token_file is None:
        raise ConfigError("[auth] token_file is not set in the configuration")
    file = TokenFile(config.auth_token_file)
    if args.action == "add":
        made = file.add(args.name, admin=args.admin)
        messages.write(f"The token of {args.name}; it is shown only once:\n")
        messages.flush()
        out.write(f"{made}\n")
        _warn_if_unreadable(file.path, config, messages)
    elif args.action == "revoke":
        file.revoke(args.name)
        messages.write(f"The token of {args.name} is revoked.\n")
        _warn_if_unreadable(file.path, config, messages)
    else:
        for name, entry in sorted(file.entries().items()):
            out.write(f"{name} {'admin' if entry.user.admin else 'user'}\n")
    return 0


def _warn_if_unreadable(path: Path, config: Config, messages: TextIO) -> None:
    """Warn if the service, usually run by the volume's owner, cannot read the file."""
    try:
        uid = config.volume_path.stat().st_uid
    except OSError:
        return
    place = unreadable_by(uid, path)
    if place is not None:
        user, mode = user_name(uid), "0750" if place.is_dir() else "0640"
        messages.write(
            f"cartd-cmd: {user}, the owner of the volume, cannot read {path}: {place} is"
            f" {describe_permissions(place)}. A service that runs as {user} accepts no token until"
            f" that is fixed: chgrp {group_name(uid)} {place} && chmod {mode} {place}\n"
        )


def _name(text: str) -> str:
    try:
        return check_name(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None

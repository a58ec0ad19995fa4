"""The command that checks a token with the service, and stores it."""

from __future__ import annotations

import os
import sys
import uuid

import click

from cartd_client.cli.options import CartCommand
from cartd_client.cli.session import RETRIES, Session, pass_session
from cartd_client.client import Client
from cartd_client.config import read_token, save_login
from cartd_client.errors import (
    ClientError,
    ExitStatus,
    InvalidSetting,
    NoSuchCart,
    NotAllowed,
    UsageError,
)


@click.command(cls=CartCommand)
@click.option(
    "--keyring/--no-keyring",
    "use_keyring",
    default=None,
    help="Store the token in the keyring, or in a file. Default: in the keyring if there is one.",
)
@pass_session
def login(session: Session, use_keyring: bool | None) -> ExitStatus:
    """Ask for a token, check it with the service, and store it with the address.

    The token is not shown, and not taken from the command line, which other users can see. From
    then on commands need neither --url nor a token. Without a terminal, the token is the first
    line of standard input, or the content of --token-file.

    The profile of --profile is written; the default is 'default'. Without the package keyring,
    the token is in a file of the configuration directory that only you can read.

    \b
    Examples:
      cart login --url https://cartd.example.org
      cart login --url https://other.example.org --profile other
      pass show cartd | cart login --url https://cartd.example.org
    """
    options = session.options
    url = options.url or os.environ.get("CARTD_URL") or _known_url(session)
    token = None
    if not _is_accepted(session, url, None):
        token = read_token(options.token_file) if options.token_file else _asked(session, url)
        if not _is_accepted(session, url, token):
            raise NotAllowed(
                f"{url} does not accept this token: nothing was stored. Ask the administrator of"
                " the service for a valid one"
            )
    profile = options.profile or "default"
    try:
        place = save_login(url, token, profile=profile, use_keyring=use_keyring)
    except UsageError as error:
        raise ClientError(error.message) from error
    where = f"The token is in {place}." if token else "The service needs no token."
    session.result(
        {"url": url, "profile": profile, "stored": place if token else None},
        f"Commands now use {url}. {where}",
    )
    return ExitStatus.OK


def _known_url(session: Session) -> str:
    """Return the URL of the profile, or ask for it."""
    try:
        return session.settings.url
    except InvalidSetting:
        if not session.can_ask:
            raise
        return str(click.prompt("Address of the service", err=True)).strip()


def _asked(session: Session, url: str) -> str:
    """Return the token that the user types, without echo, or that standard input has."""
    if session.can_ask:
        token = click.prompt(f"Token for {url}", hide_input=True, err=True)
    else:
        token = sys.stdin.readline()
    token = str(token).strip()
    if not token:
        raise ClientError("No token was given: nothing was stored")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ClientError("The token has characters that no token has: nothing was stored")
    return token


def _is_accepted(session: Session, url: str, token: str | None) -> bool:
    """Whether the service answers a request with this token, or without one."""
    retries = session.options.retries
    with Client(
        url,
        token=token,
        cacert=session.options.cacert or os.environ.get("CARTD_CACERT"),
        retries=RETRIES if retries is None else retries,
    ) as client:
        try:
            client.status(f"login-{uuid.uuid4()}")  # there is none: the answer is 404
        except NotAllowed:
            return False
        except NoSuchCart:
            return True
    return True

"""Tokens of forms: a form is accepted only if a page of this service had it, for the same user.

A second protection against cross-site request forgery, beside :mod:`cartd.http.origins`: a page of
another site cannot read a page of this one, and so does not know a token.

The tokens need no memory: each is its end and an HMAC of the end and the user.  All processes
of one store have the same key, so a form of one is accepted by the others, also after a restart.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from typing import Final

from cartd.errors import CartdError, Problem

LIFETIME: Final = 86_400
"""Seconds for which a token is valid, at least."""
_STEP: Final = 3600
"""Tokens end at multiples of this, so that a page that is loaded again has the same token."""
_END_BYTES: Final = 6
_DIGEST: Final = "sha256"


class ForgedForm(CartdError):
    """The token of a form is missing, invalid, of another user, or has expired."""

    code = 403
    problem = Problem.CROSS_SITE

    def __init__(self) -> None:
        super().__init__(
            "The form was not accepted: it is too old, or not from a page that this service sent to"
            " you. Reload the page and send it again"
        )


class FormTokens:
    """Issues and checks tokens.  ``key`` is secret; ``now`` returns Unix time."""

    def __init__(self, key: bytes, now: Callable[[], float]) -> None:
        self._key = key
        self._now = now

    def issue(self, user: str | None) -> str:
        """Return a token for a user; None without authentication."""
        end = (int(self._now()) + LIFETIME) // _STEP * _STEP + _STEP
        data = end.to_bytes(_END_BYTES, "big")
        return base64.urlsafe_b64encode(data + self._digest(data, user)).decode("ascii")

    def check(self, token: str, user: str | None) -> None:
        """Check a token that ``user`` has sent, in constant time.

        :raises ForgedForm: it is not valid.
        """
        try:
            sent = base64.urlsafe_b64decode(token.encode("ascii"))
        except (UnicodeEncodeError, binascii.Error):
            raise ForgedForm from None
        data, digest = sent[:_END_BYTES], sent[_END_BYTES:]
        is_genuine = hmac.compare_digest(digest, self._digest(data, user))
        if not is_genuine or int.from_bytes(data, "big") < self._now():
            raise ForgedForm

    def _digest(self, data: bytes, user: str | None) -> bytes:
        whose = b"-" if user is None else b"+" + user.encode()
        return hmac.digest(self._key, data + whose, _DIGEST)

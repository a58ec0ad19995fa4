"""How fast a cart is staged, and when it will be complete, as its row in the store says it."""

from __future__ import annotations

from msgspec import Struct
from msgspec.json import Decoder, Encoder

from cartd.status.document import Basis


class Pace(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the process that stages a cart has measured; what is not known is None."""

    at: float
    """Unix time of the measurement."""
    fetching: int = 0
    """Files that are being transferred."""
    partial: int = 0
    """Their bytes that have been received."""
    recalling: int = 0
    """Files on tape."""
    recent: int | None = None
    """Bytes per second of late."""
    mean: int | None = None
    """Bytes per second since the transfers began."""
    low: int | None = None
    """The cart is complete ``low`` to ``high`` seconds after ``at``."""
    high: int | None = None
    basis: Basis | None = None


_DECODER = Decoder(Pace)
_ENCODER = Encoder()


def dumped(pace: Pace) -> str:
    """Return the pace as JSON, for the store."""
    return _ENCODER.encode(pace).decode()


def loaded(text: str) -> Pace:
    """Return the pace of a result of :func:`dumped`."""
    return _DECODER.decode(text)

"""An archive that is away: noticed, waited for, and told of."""

from cartd.circuit_breaker.breaker import Outage

__all__ = ["Outage"]

"""An archive that is away: noticed, waited for, and told of."""

from cartd.outage.outage import Outage

__all__ = ["Outage"]

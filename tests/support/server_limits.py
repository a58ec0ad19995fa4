"""The limits of the server as they are by default, or with some of them changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cartd.config import load
from cartd.http.request_limits import Limits


def limits(**changed: Any) -> Limits:
    return replace(Limits.of(load(options={}, environ={}, ini=None)), **changed)

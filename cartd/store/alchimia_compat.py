"""``wrap_engine`` of alchimia on SQLAlchemy 2: the only module that imports alchimia.

alchimia's last release derives a class that nothing here uses from ``DefaultEngineStrategy``, a
name that SQLAlchemy 1.4 removed.  With an empty class of that name in its place the import passes,
and the rest of alchimia needs only what SQLAlchemy still has.
"""

from __future__ import annotations

from sqlalchemy.engine import strategies

if not hasattr(strategies, "DefaultEngineStrategy"):
    strategies.DefaultEngineStrategy = type(  # type: ignore[attr-defined]
        "DefaultEngineStrategy", (), {}
    )

from alchimia import wrap_engine

__all__ = ["wrap_engine"]

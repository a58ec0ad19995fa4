"""``wrap_engine`` of alchimia on SQLAlchemy 2: the only module that imports alchimia.

alchimia's last release imports ``DefaultEngineStrategy`` for a class of its own that nothing here
uses; SQLAlchemy removed the module of that name.  With an empty class in its place the import
passes, and the rest of alchimia needs only what SQLAlchemy still has.
"""

from __future__ import annotations

import sys
from types import ModuleType

STRATEGIES = "sqlalchemy.engine.strategies"

if STRATEGIES not in sys.modules:
    _strategies = ModuleType(STRATEGIES, "Stands in for a module that SQLAlchemy 1.4 removed.")
    _strategies.DefaultEngineStrategy = type(  # type: ignore[attr-defined]
        "DefaultEngineStrategy", (), {}
    )
    sys.modules[STRATEGIES] = _strategies

from alchimia import wrap_engine  # noqa: E402

__all__ = ["wrap_engine"]

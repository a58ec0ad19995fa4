"""Cartd stages files from an archive, verifies them and streams them as one tar.

The modules form six layers, and import only downwards (``make check`` enforces it).
``docs/architecture.md`` names them, and follows a cart through them; ``docs/glossary.md`` defines
the terms.
"""

__version__ = "1.0.0"

"""Cartd stages files from an archive, verifies them and streams them as one tar.

The modules form four layers, and import only downwards (``make check`` enforces it):

* edge: :mod:`~cartd.service`, :mod:`~cartd.cli`, :mod:`~cartd.http`, :mod:`~cartd.options`
* flows: what happens to a cart, step by step (:mod:`~cartd.carts`, :mod:`~cartd.staging`, ...)
* adapters: the volume, the store, the archive and the sender
* pure: values and decisions, without I/O and without Deferreds

``docs/architecture.md`` follows a cart through them; ``docs/glossary.md`` defines the terms.
"""

__version__ = "1.0.0"

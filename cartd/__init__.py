"""Cartd stages files out of an archive, verifies them and streams them as one tar.

The modules stand on four floors, and import only downwards (``make check`` holds it):

* edge: :mod:`~cartd.service`, :mod:`~cartd.cli`, :mod:`~cartd.rest`, :mod:`~cartd.options`
* flows: what happens to a cart, in order (:mod:`~cartd.staging`, :mod:`~cartd.downloads`, ...)
* adapters: the volume, the store, the archive and the sender
* pure: values and decisions, without I/O and without Deferreds

``docs/architecture.md`` follows a cart through them.
"""

__version__ = "1.0.0"

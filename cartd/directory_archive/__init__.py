"""A simple archive: serves a directory with Pacifica's Archive Interface protocol.

``twistd -n cartd-archive --root DIR`` starts it.  It is for trying cartd, for tests, and for sites
whose archive is an ordinary directory.  It can simulate a tape library.
"""

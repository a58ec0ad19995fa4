"""An archive to start with: serves a directory by Pacifica's Archive Interface protocol.

``twistd -n cartd-archive --root DIR`` starts it.  It is for trying cartd, for tests, and for
sites whose archive is an ordinary directory.  It can also act like a library of tapes and like
a bad day.
"""

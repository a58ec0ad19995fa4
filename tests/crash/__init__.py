"""Crash tests: the service is killed at any moment under load, and then must be consistent.

``load`` are the clients, ``model`` is what they may receive, ``kill_points`` is the service that
kills itself at a given point, ``harness`` kills and restarts it, ``checks`` and ``consistency``
compare volume and store, and ``soak`` repeats all that for a given time.
"""

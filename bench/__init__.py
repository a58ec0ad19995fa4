"""Benchmark of cartd against its alternatives; see ``bench/README.md``.

It is not installed with the package: it runs from a checkout, on Linux.
"""

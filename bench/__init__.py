"""Cartd measured beside what its users would run in its place; ``bench/README.md`` explains.

Nothing of it is installed with the package: it runs from a checkout, on Linux.
"""

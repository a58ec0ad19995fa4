"""Simulation of cartd in one process, without threads, sockets or real time.

The service's own components are used; the reactor, the threads and the archive are simulated, and
one seed decides all their delays and faults.
"""

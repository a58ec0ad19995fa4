"""A day in the life of cartd, in one process, without threads, sockets or real time.

The parts are those of the service, joined by the service.  In place of the reactor, the threads
and the archive stand some whose every delay and fault comes from one seed.
"""

"""Fuzzing of all that reads what strangers wrote: one module a target, each with its oracle.

``check(data)`` of a target takes any bytes, and raises if what becomes of them is not right, which
is more than that nothing is raised.  ``WORDS`` are pieces of its language, for whoever mutates.
The suite replays ``corpus/`` and mutations of it (:mod:`tests.test_fuzz`); ``make fuzz`` searches
on, led by coverage (:mod:`tests.fuzz.campaign`).
"""

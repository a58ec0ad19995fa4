"""Fuzzing of all readers of untrusted text: one module per target, each with its oracle.

``check(data)`` of a target takes any bytes, and raises if the result is not right, which is more
than the absence of an exception.  ``WORDS`` are tokens of its language, for the mutator.  The suite
replays ``corpus/`` and mutations of it (:mod:`tests.fuzz.test_fuzz`); ``make fuzz`` continues from
there, guided by coverage (:mod:`tests.fuzz.campaign`).
"""

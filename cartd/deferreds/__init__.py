"""Asynchronous primitives on Twisted's Deferred: semaphores, tasks, threads, a rate limiter."""

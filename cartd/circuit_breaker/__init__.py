"""Circuit breaker: detect an outage of the archive, let files wait, and record that they do."""

from cartd.circuit_breaker.breaker import CircuitBreaker

__all__ = ["CircuitBreaker"]

"""Space on the volume: reserve it for carts in staging, and evict old carts to free it."""

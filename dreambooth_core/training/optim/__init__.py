"""Optimizer updates, one module per way of sharding them, and the state they keep."""

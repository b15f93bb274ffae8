"""Training steps through JAX, by torchax. Only this package imports JAX."""
